"""What users write: the public names and their options. A change here is a change for them."""

import inspect
from dataclasses import fields

import pytest

import rankwise as rw

OPTIONS = {
    "plan": "model rank select exclude min_features train example machine",
    "adapt_": "model rank select exclude min_features train scale seed",
    "factorize_": "model rank init select exclude min_features convolution",
    "plan_factorize": "model rank select exclude min_features convolution example",
    "densify_": "model",
    "shrink": "model",
    "merge_": "model final",
    "unmerge_": "model",
    "save": "model folder",
    "load": "model folder prefix other_base",
    "save_training": "path model optimizer scheduler progress keep score",
    "load_training": "path model optimizer scheduler",
    "export_lora": "model folder compact max_rank base_model_name task_type prefix",
    "Optimizer": (
        "model lr rule rank_rule integrator control weight_decay max_step turns inputs_every "
        "conditioning guard groups"
    ),
    "LowRankConv2d": "factors kernel_size stride padding dilation bias base scale",
    "LowRankLinear": "factors base bias scale",
    "FixedRank": "",
    "Tolerance": "every grow min_rank max_rank rest rtol keep",
    "TailTolerance": "rtol order every min_rank max_rank",
    "Budget": "every grow min_rank max_rank rest parameters keep",
    "Adam": "betas power spectrum eps",
    "SGD": "",
    "HeavyBall": "momentum",
    "Spectral": "momentum",
    "RateFree": "start growth dense_lr",
}
ADAPTERS = {
    "Adapter": "stored rounding",
    "export_lora": "adapter folder compact base_model_name task_type",
    "mean": "adapters weights",
    "put_": "model adapter prefix other_base",
    "read": "folder",
    "take": "model",
    "write": "adapter folder",
}
FEDERATED = {
    "Bounds": "norm relative samples",
    "Client": "name model method loss data",
    "Event": "client phase kind reason",
    "FactorAverage": "lr steps",
    "Failure": "client reason",
    "FeDLRT": (
        "correction lr steps rtol min_rank max_rank gradient_batches direction_dtype server_step"
    ),
    "FedAvg": "lr steps",
    "FullCorrection": "",
    "MeanStep": "",
    "NoCorrection": "",
    "Reply": "client round phase samples arrays",
    "Request": "round phase arrays",
    "RoundRecord": "number participants answered ranks down up events void",
    "Samples": "tensors batch_size seed",
    "Server": "model method clients participation quorum bounds seed",
    "SimplifiedCorrection": "",
    "SpectralStep": "lr",
    "run": "server clients rounds watch",
}
FEDERATE = (
    "data model clients alpha correction compare rounds local_steps lr server_lr fedavg_steps "
    "fedavg_lr rank max_rank tolerance gradient_batches directions batch_size participation engine "
    "seed output resume overwrite save_every threads"
)
FINETUNE = (
    "model data task text_column label_column eval_data eval_fraction rank budget rtol fixed_rank "
    "rule lr head_lr rate_free weight_decay beta batch_size steps inputs_every max_length "
    "train_on_prompts pack sample_tokens checkpointing bfloat16 quantize select scale seed output "
    "resume overwrite save_every keep_checkpoints rewinds threads"
)
TRAIN = (
    "data model keep tolerance epochs steps lr weight_decay beta max_norm max_condition "
    "adversarial adversarial_steps rate_free batch_size dense seed output resume overwrite "
    "save_every keep_checkpoints rewinds threads"
)
ATTACK = (
    "data attacks eps eps_l2 surrogate trust_code rows epochs steps max_norm seed output resume "
    "overwrite save_every keep_checkpoints threads subjects"
)

CONVERT = "max_rank tolerance adapter compact prefix overwrite"


def options(public) -> list[str]:
    return [name for name in inspect.signature(public).parameters if name != "self"]


def test_the_public_names_are_these():
    assert set(rw.__all__) == set(OPTIONS)
    assert len(rw.__all__) == len(OPTIONS) <= 25


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_are_these(name):
    assert options(getattr(rw, name)) == OPTIONS[name].split()


def test_the_names_and_options_of_adapters_are_these():
    assert set(rw.adapters.__all__) == set(ADAPTERS)
    for name, expected in ADAPTERS.items():
        assert options(getattr(rw.adapters, name)) == expected.split()
    assert options(rw.adapters.Adapter.rounded) == ["rtol", "max_rank"]
    assert options(rw.compress.truncate_) == ["model", "rtol", "max_rank"]


@pytest.mark.parametrize("name", FEDERATED)
def test_the_names_and_options_of_federated_training_are_these(name):
    assert options(getattr(rw.federated, name)) == FEDERATED[name].split()


def test_the_options_of_the_command_line_are_these():
    from rankwise.recipes.attack_options import AttackOptions
    from rankwise.recipes.convert_options import ConvertSettings
    from rankwise.recipes.federate_options import FederateOptions
    from rankwise.recipes.options import FinetuneOptions
    from rankwise.recipes.train_options import TrainOptions

    assert options(FinetuneOptions) == FINETUNE.split()
    assert options(TrainOptions) == TRAIN.split()
    assert options(AttackOptions) == ATTACK.split()
    assert options(FederateOptions) == FEDERATE.split()
    assert options(ConvertSettings) == CONVERT.split()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_public_name_is_documented_and_names_each_option(name):
    public = getattr(rw, name)
    text = inspect.getdoc(public)
    for option in set(options(public)) - {"model"}:
        # A rank rule inherits the description of the options that it inherits.
        inherited = " ".join(inspect.getdoc(c) or "" for c in getattr(public, "__mro__", ())[1:-1])
        assert option in text or option in inherited, f"{name} says nothing of `{option}`"


RULES = ["FixedRank", "Tolerance", "TailTolerance", "Budget", "Adam", "HeavyBall", "RateFree"]


@pytest.mark.parametrize("name", RULES)
def test_rules_are_values_equal_by_their_options_and_immutable(name):
    rule = getattr(rw, name)
    keywords = {"parameters": 100} if name == "Budget" else {}
    assert rule(**keywords) == rule(**keywords)
    assert hash(rule(**keywords)) == hash(rule(**keywords))
    assert [f.name for f in fields(rule)] == OPTIONS[name].split()
    with pytest.raises(AttributeError):
        rule(**keywords).momentum = 0.5


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert rw.__version__ == version("rankwise")
