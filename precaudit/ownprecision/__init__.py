"""The precision that a script chose for itself: switched off where float32 or a plan is measured, and watched for what
it loses where the script runs as written."""
