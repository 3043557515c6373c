"""GRPO: from prompts to new weights.

How a prompt becomes a gradient, in the order of the calls:

 1. `run_stage.run_stage`          deals the prompts out to steps
 2. `train_step.train_step`        one step: sample, score, log-probabilities, update
 3. `rollout.sample_and_score`     the task turns a prompt into a dialogue, and replies into scores
 4. `ChatModel.reply`              dialogue -> token ids -> a group of replies
 5. `Engine.sample`                token ids -> sampled tokens with log-probabilities
 6. `rollout.make_batch`           replies and scores -> a `Batch` with advantages, on the host
 7. `train_step.optimizer_batches` the part of each update, with the log-probabilities it needs
 8. `Learner.passes`               a batch -> equally shaped `MicroBatch`es, a few per pass
 9. `Learner.update`               sums the gradients of the passes and updates the weights
10. `learner.gradient`             the jitted gradient of `grpo.loss` over `completion_logp`

How a config key reaches it: `config.grpo` is the `LossConfig` that `stage_settings.learner` puts
into the stage's `LearnerConfig`; `Learner` binds it to `learner.gradient`, which passes it to
`grpo.loss`.
"""
