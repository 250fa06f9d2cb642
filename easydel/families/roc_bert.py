"""RoCBert (Su et al. 2022): BERT for Chinese, with vectors for how tokens look and sound beside their own."""

from easydel.families._parts import Decoder, Feature, HFConfig, Names, Transform, family
from easydel.families.bert import TRANSFORMED, embed, encoder, names as bert_names, norm

RENAMES = {
    r"model\.shapes": "roc_bert.embeddings.shape_embed",
    r"model\.sounds": "roc_bert.embeddings.pronunciation_embed",
    r"model\.project_in": "roc_bert.embeddings.map_inputs_layer",
}


def features(c: HFConfig) -> tuple[Feature, ...]:
    """The features that are joined to tokens; added to them, they count only where they are given."""
    shapes = Feature("shapes", c.shape_vocab_size, c.shape_embed_dim)
    sounds = Feature("sounds", c.pronunciation_vocab_size, c.pronunciation_embed_dim)
    used = {shapes: c.enable_shape, sounds: c.enable_pronunciation}
    return tuple(feature for feature, enabled in used.items() if enabled and c.concat_input)


def names(c: HFConfig) -> Names:
    used = {feature.name for feature in features(c)}
    unread = [RENAMES[rf"model\.{name}"].replace(".", r"\.") for name in ("shapes", "sounds") if name not in used]
    table = bert_names("roc_bert", "cls.predictions", TRANSFORMED | RENAMES)(c)
    return table.extended(ignored=tuple(rf"{tensor}\.weight" for tensor in unread))


@family("roc_bert", names)
def roc_bert(c: HFConfig) -> Decoder:
    return encoder(c, embed(c, features=features(c), bias=True), Transform(c.hidden_act, norm(c)))
