"""The building blocks of families, to import from one place: records, tables of names, and `family` itself."""

from easydel.config import HFConfig
from easydel.decoder import Decoder
from easydel.encdec import EncoderDecoder, ShiftRight, Tower, WrapLast
from easydel.errors import ConfigError, UnsupportedModelError
from easydel.families import family
from easydel.layers.attention import Attention, Gate, HandOn, Heads, QKNorm, TakeOver, Weights
from easydel.layers.beside import Beside
from easydel.layers.biased_moe import BiasedMoE
from easydel.layers.block import Block
from easydel.layers.block_indexer import BlockIndexer
from easydel.layers.block_residual import BlockSums
from easydel.layers.capacity import FirstChoice, TwoChoices
from easydel.layers.cca import CCA
from easydel.layers.compressed import CompressedAttention
from easydel.layers.compressor import Compressor, EntryIndexer
from easydel.layers.conv_attention import ConvAttention
from easydel.layers.cross import CrossAttention
from easydel.layers.delta import DeltaNet
from easydel.layers.embed import Embed, Feature, Head, Learned, Sinusoidal, Transform
from easydel.layers.gated_streams import GatedStreams, GatedStreamsBlock
from easydel.layers.hyper import HyperBlock, HyperConnections, Sinkhorn
from easydel.layers.indexer import Indexer, SharedIndexer
from easydel.layers.language_adapters import LanguageAdapted
from easydel.layers.lightning import Lightning
from easydel.layers.local import Local, Summaries
from easydel.layers.mamba import Mamba
from easydel.layers.mamba2 import GatedNorm, Mamba2
from easydel.layers.marked import Marked
from easydel.layers.merged import Merged
from easydel.layers.mixture_of_heads import MixtureOfHeads
from easydel.layers.mla import MLA
from easydel.layers.mlp import GLU, MLP, LimitedGLU
from easydel.layers.mlp_router import MLPRouter
from easydel.layers.moe import Groups, MoE, TopK
from easydel.layers.ngram_input import NGramInput
from easydel.layers.ngram_table import NGramTable
from easydel.layers.norm import Affine, AnyNorm, L2Clip, LayerNorm, RMSNorm
from easydel.layers.own_block import GlobalTokens, OwnBlock
from easydel.layers.part import Part
from easydel.layers.per_layer import LayerInput, TokenInputs
from easydel.layers.pooled_indexer import PooledIndexer
from easydel.layers.position import ALiBi, Blocks, GrowingScale, LogGrowth
from easydel.layers.relative import RelativeBias
from easydel.layers.residual import FromRead, Parallel, Post, Sequential
from easydel.layers.residual_conv import ResidualConv, TokenConv
from easydel.layers.rope import LongRope, Rope, Yarn, rope_from_settings, yarn_gain
from easydel.layers.scaled_joins import ScaledJoins
from easydel.layers.short_conv import ShortConv
from easydel.layers.sink_moe import SinkMoE, SinkTopK
from easydel.layers.token_bias import TokenBias
from easydel.layers.token_router import ByToken
from easydel.layers.two_stream import Prediction, TwoStreamAttention
from easydel.layers.value_bias import ValueBiased
from easydel.ops.attend import Around, Causal, Chunks, Sight
from easydel.weights.names import GATE_UP, QKV, Fused, Names, concatenated, grouped, interleaved, one_row
