"""The frozen models of a round: they answer instructions, filter them, and judge replies."""

from collections.abc import Mapping
from pathlib import Path

from seif_jax import stage_settings
from seif_jax.chat import ChatModel
from seif_jax.rewards.checker import Checker
from seif_jax.rewards.judge import Judge
from seif_jax.rewards.user_checks import JUDGE, UserCheck
from seif_jax.rl.answerer import Answerer
from seif_jax.role_weights import RoleWeights
from seif_jax.roles.prompts import Prompts
from seif_jax.run_config import RunConfig


class FrozenRoles:
    """Makes the frozen roles of a round from the config and the weights.

    F_t is the Follower after round t, as in the paper. config: its dtype is not "auto". prompts:
    by role. checks: the user's own checks, by name.
    """

    def __init__(
        self,
        config: RunConfig,
        weights: RoleWeights,
        prompts: Mapping[str, Prompts],
        checks: Mapping[str, UserCheck],
    ):
        self.config, self.weights = config, weights
        self.prompts, self.checks = prompts, checks

    def chat_model(self, path: Path, dtype: str, devices: str = "shared") -> ChatModel:
        """The frozen model at `path`. devices: "shared", or config.judger.devices."""
        return ChatModel(self.weights.engine(path, dtype, devices), self.weights.base.tokenizer)

    def checker(self, round: int) -> Checker:
        """The checks of a round. The Judger, if there is one, is F_{t-1} or a fixed model."""
        c = self.config.judger
        names = self.config.reward.checks
        if JUDGE not in names:
            return Checker(names, functions=self.checks)
        path = self.weights.judger_path(round)
        chat_model = self.chat_model(path, c.dtype or self.config.dtype, c.devices)
        decoding = stage_settings.verdict_decoding(self.config, c, stage_settings.JUDGER_RNG_STREAM)
        judge = Judge(chat_model, c.mode, c.shots, decoding, self.prompts["judger"])
        return Checker(names, judge, self.checks)

    def evaluator(self, round: int) -> ChatModel:
        """F_{t-1}, which filters and answers, on the Judger's devices."""
        path = self.weights.path("follower", round - 1)
        return self.chat_model(path, self.config.dtype, self.config.judger.devices)

    def filter(self, evaluator: ChatModel) -> Judge:
        """The Filter, which asks `evaluator` whether instructions contradict themselves."""
        c = self.config.filter
        decoding = stage_settings.verdict_decoding(self.config, c, stage_settings.FILTER_RNG_STREAM)
        return Judge(evaluator, c.mode, c.shots, decoding, self.prompts["filter"])

    def answerer(self, evaluator: ChatModel) -> Answerer:
        """The frozen Follower, which answers the instructions that the Instructor writes."""
        c = self.config
        decoding = stage_settings.decoding(
            c, c.follower, c.answer.temperature, stage_settings.ANSWER_RNG_STREAM
        )
        return Answerer(
            evaluator,
            decoding,
            c.format,
            c.follower.shots,
            self.prompts["follower"],
            c.answer.samples,
        )
