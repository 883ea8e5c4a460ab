from zenml.config.pipeline_run_configuration import PipelineRunConfiguration

from ted.settings_file import TOP_LEVEL_KEYS


def test_the_commands_and_zenml_know_the_same_top_level_keys() -> None:
    assert sorted(TOP_LEVEL_KEYS) == sorted(PipelineRunConfiguration.model_fields)
