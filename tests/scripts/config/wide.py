# a wider transformer_lm
n_embd = 96
n_head = 6
learning_rate = 5e-4
