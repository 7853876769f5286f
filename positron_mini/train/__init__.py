"""A run from asked to finished: find it, decide every setting, plan its steps, build, record; pretraining and fine-tuning."""
