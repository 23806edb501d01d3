"""The kinds of answers: what each is, how it is read, when two are the same."""
