"""The shape of the embedded models: Qwen2, small enough for two cores."""

from transformers import PreTrainedTokenizerBase, Qwen2Config


def model_config(
    tokenizer: PreTrainedTokenizerBase, *, num_layers: int = 2, num_labels: int = 2
) -> Qwen2Config:
    """Makes the config of a policy or PRM: width 128, 4 heads on 1 key-value head.

    With two layers and 22 tokens the causal LM has 0.36 million parameters.

    Args:
        tokenizer: names the vocabulary, the pad and the EOS token.
        num_layers: of the transformer.
        num_labels: of the token classifier, ignored by the causal LM.
    """
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.08,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        use_cache=True,
        attention_dropout=0.0,
    )
    config.num_labels = num_labels
    return config
