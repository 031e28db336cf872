"""NVML as precaudit uses it, with cards made up by a test."""

from __future__ import annotations

from types import SimpleNamespace


class FakeError(Exception):
    pass


class FakeNvml:
    """`cards` are namespaces with what each call returns; a missing value raises as a driver would."""

    NVMLError = FakeError
    NVML_SUCCESS = 0
    NVML_GPM_METRICS_GET_VERSION = 1
    NVML_GPM_METRIC_ANY_TENSOR_UTIL = 5

    def __init__(self, *cards, loads=True):
        self.cards, self.loads = cards, loads
        self.open, self.samples = 0, 0

    @staticmethod
    def _of(card, name):
        if not hasattr(card, name):
            raise FakeError("Not Supported")
        return getattr(card, name)

    def nvmlInit(self):
        if not self.loads:
            raise FakeError("NVML Shared Library Not Found")
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlSystemGetDriverVersion(self):
        return b"580.65.06"

    def nvmlDeviceGetCount(self):
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return next(card for card in self.cards if card.uuid == uuid)

    def nvmlDeviceGetName(self, card):
        return self._of(card, "name")

    def nvmlDeviceGetCudaComputeCapability(self, card):
        return self._of(card, "capability")

    def nvmlDeviceGetMemoryInfo(self, card):
        return SimpleNamespace(total=self._of(card, "memory"))

    def nvmlDeviceGetTotalEnergyConsumption(self, card):
        return self._of(card, "energy").pop(0)

    def nvmlGpmQueryDeviceSupport(self, card):
        return SimpleNamespace(isSupportedDevice=self._of(card, "gpm"))

    def nvmlGpmSampleAlloc(self):
        self.samples += 1
        return SimpleNamespace()

    def nvmlGpmSampleFree(self, sample):
        self.samples -= 1

    def nvmlGpmSampleGet(self, card, sample):
        sample.counters = self._of(card, "counters")

    def c_nvmlGpmMetricsGet_t(self):
        return SimpleNamespace(metrics=[SimpleNamespace(nvmlReturn=1, value=0.0) for _ in range(100)])

    def nvmlGpmMetricsGet(self, query):
        assert query.version == self.NVML_GPM_METRICS_GET_VERSION
        for metric in query.metrics[: query.numMetrics]:
            if metric.metricId in query.sample2.counters:
                metric.nvmlReturn, metric.value = 0, query.sample2.counters[metric.metricId]
        return query


def card(name="NVIDIA H100 80GB HBM3", **facts):
    return SimpleNamespace(name=name, **facts)


def fake_torch(cuda="13.0", sees=True):
    return SimpleNamespace(
        __version__="2.11.0", version=SimpleNamespace(cuda=cuda), cuda=SimpleNamespace(is_available=lambda: sees)
    )
