"""Tag every token of Python source with its kind, from its spelling, with a bidirectional LSTM.

The data are the sources of a standard library module, tokenised by `tokenize`.
"""
import io
import json.decoder
import inspect
import tokenize

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

torch.manual_seed(1)

KINDS = {tokenize.NAME: 0, tokenize.OP: 1, tokenize.NUMBER: 2, tokenize.STRING: 3, tokenize.COMMENT: 4}
HIDDEN_DIM = 32
EMBEDDING_DIM = 24


def sentences():
    source = inspect.getsource(json.decoder)
    line = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in KINDS:
            line.append((token.string[:20], KINDS[token.type]))
        elif token.type in (tokenize.NEWLINE, tokenize.NL) and line:
            yield line
            line = []


training_data = list(sentences())

word_to_ix = {"<unk>": 0}
for line in training_data:
    for word, _ in line:
        if word not in word_to_ix:
            word_to_ix[word] = len(word_to_ix)


class LSTMTagger(nn.Module):

    def __init__(self, embedding_dim, hidden_dim, vocab_size, tagset_size):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.word_embeddings = nn.Embedding(vocab_size, embedding_dim)
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, num_layers=2, bidirectional=True, dropout=0.1, batch_first=True)
        self.hidden2tag = nn.Linear(2 * hidden_dim, tagset_size)

    def forward(self, words, lengths):
        embeds = self.word_embeddings(words)
        packed = pack_padded_sequence(embeds, lengths, batch_first=True, enforce_sorted=False)
        lstm_out, _ = self.lstm(packed)
        lstm_out, _ = pad_packed_sequence(lstm_out, batch_first=True)
        return F.log_softmax(self.hidden2tag(lstm_out), dim=-1)


def make_batch(lines):
    words = [torch.tensor([word_to_ix[w] if torch.rand(()) > 0.1 else 0 for w, _ in line]) for line in lines]
    tags = [torch.tensor([t for _, t in line]) for line in lines]
    lengths = torch.tensor([len(line) for line in lines])
    return pad_sequence(words, batch_first=True), pad_sequence(tags, batch_first=True, padding_value=-100), lengths


model = LSTMTagger(EMBEDDING_DIM, HIDDEN_DIM, len(word_to_ix), len(KINDS))
loss_function = nn.NLLLoss(ignore_index=-100)
optimizer = optim.SGD(model.parameters(), lr=0.5)

for epoch in range(20):
    order = torch.randperm(len(training_data)).tolist()
    total_loss, correct, count = 0.0, 0, 0
    for start in range(0, len(order), 16):
        words, tags, lengths = make_batch([training_data[i] for i in order[start:start + 16]])
        model.zero_grad()
        tag_scores = model(words, lengths)
        loss = loss_function(tag_scores.transpose(1, 2), tags)
        loss.backward()
        optimizer.step()

        total_loss += loss.item()
        mask = tags != -100
        correct += (tag_scores.argmax(-1)[mask] == tags[mask]).sum().item()
        count += mask.sum().item()
    print(f"epoch {epoch}: loss {total_loss:.3f} accuracy {correct / count:.3f}")
