"""A secret that is typed is refused before anything records it."""

from __future__ import annotations

import pytest

from sweeper.config.hydra_app import initialized
from sweeper.errors import RequestError
from sweeper.plan.plan import make

SECRET = "s3cr3t-0123456789"


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        (f"tracking.uri='http://user:{SECRET}@host:5000'", "MLFLOW_TRACKING_PASSWORD"),
        (f"+engine.env.HTTPS_PROXY='http://user:{SECRET}@proxy:3128'", "engine.inherit"),
        (f"+engine.env.WANDB_API_KEY={SECRET}", "engine.inherit=[...,WANDB_API_KEY]"),
        (f"+reward.custom_reward_function.reward_kwargs.api_key={SECRET}", "export API_KEY"),
        (f"+actor_rollout_ref.model.override_config={{hf_token:{SECRET}}}", "export HF_TOKEN"),
        (f"+data.password={SECRET}", "export PASSWORD"),
    ],
)
def test_a_typed_secret_is_refused_with_the_way_to_pass_it(line: str, fix: str) -> None:
    with initialized(), pytest.raises(RequestError) as caught:
        make([line])
    assert "is recorded" in str(caught.value) and fix in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "tracking.uri=http://host:5000",
        "data.prompt_key=prompt",
        "data.reward_fn_key=data_source",
        "+actor_rollout_ref.model.override_config.pad_token=x",
        "+engine.env.HF_ENDPOINT=https://mirror/a:b@c",
    ],
)
def test_what_only_sounds_like_one_is_taken(line: str) -> None:
    with initialized():
        make([line])
