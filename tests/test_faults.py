"""Where each fault that an attacker once found is a test: kill, power loss, damage, failing stores, hostile files.

Fault -> tests that hold its right behaviour, in the file of their room. docs/reliability.md says what is promised.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
STORE, CHECKPOINTS = "checkpoint/test_store.py", "checkpoint/test_checkpoints.py"
LOCK, FRESH, LINES = "run/test_lock.py", "run/test_fresh_start.py", "storage/test_json_lines.py"
STREAMS, ATOMIC, SOURCES = "cli/test_streams.py", "config/test_atomic.py", "data/test_sources.py"
POLICY, STRANGERS = "training/test_fault_policy.py", "tools/test_stranger_files.py"
READ_OR_REFUSED = {STRANGERS: ["test_what_strangers_publish_is_read_or_refused_by_name"]}

FAULTS = {
    "a path that is a pattern": {
        STORE: ["test_a_path_that_orbax_takes_for_a_pattern_is_refused_and_would_be_found_out"],
        FRESH: ["test_a_path_that_is_a_pattern_is_refused_at_the_start"],
    },
    "two containers with one host name": {LOCK: ["test_a_process_that_could_not_be_seen_is_not_taken_for_dead"]},
    "checkpoints are gone": {
        FRESH: [
            "test_where_saves_are_on_record_and_gone_training_is_refused_and_nothing_is_touched",
            "test_a_link_to_what_is_not_mounted_is_refused_and_nothing_is_made_there",
        ]
    },
    "a store that fails for a moment": {
        CHECKPOINTS: [
            "test_a_file_that_a_store_does_not_give_is_not_damage",
            "test_a_store_that_fails_for_a_moment_is_waited_for",
            "test_only_what_was_read_can_be_unfit",
        ]
    },
    "a flipped bit in the record": {
        LINES: [
            "test_one_flipped_bit_costs_no_more_than_the_lines_that_it_is_in",
            "test_a_bad_line_is_kept_aside_and_named_and_the_others_are_used",
        ]
    },
    "the step that ruins the weights": {
        POLICY: [
            "test_weights_that_the_last_update_has_ruined_are_not_saved",
            "test_from_ruined_weights_the_run_goes_back_to_those_before",
            "test_a_run_that_fails_again_and_comes_no_further_goes_one_checkpoint_back",
        ]
    },
    "edited statistics of latents": {
        "run/test_codec_of_a_run.py": [
            "test_statistics_that_were_edited_are_refused",
            "test_what_cannot_be_statistics_is_refused_by_name",
            "test_the_name_of_a_codec_is_of_its_statistics_too_and_one_of_before_of_its_weights",
        ]
    },
    "even numbers of flipped signs": {
        "weights/test_digest.py": [
            "test_no_damage_of_many_bits_is_silent",
            "test_weights_and_their_negatives_have_two_names",
        ],
        "export/test_weights.py": [
            "test_a_changed_tensor_is_an_error_that_names_it",
            "test_one_flipped_bit_is_an_error_that_names_the_tensor",
        ],
    },
    "a shard of other clips": {SOURCES: ["test_a_shard_with_the_moments_of_other_clips_is_noticed"]},
    "a checkpoint of another run": {CHECKPOINTS: ["test_a_checkpoint_of_another_run_is_refused_and_moved_nowhere"]},
    "a lock that wedges": {
        LOCK: [
            "test_a_kill_at_any_change_of_the_folder_blocks_nobody",
            "test_what_is_no_lock_is_waited_out_and_removed",
        ]
    },
    "what a kill leaves behind": {
        ATOMIC: [
            "test_a_killed_writer_of_a_file_blocks_nobody",
            "test_a_killed_writer_of_a_folder_blocks_nobody_and_its_litter_goes_after_a_day",
        ]
    },
    "garbage in the record": {
        LINES: [
            "test_what_is_no_file_is_kept_aside_and_a_file_written_in_its_place",
            "test_a_run_with_every_record_damaged_goes_on_and_says_so",
        ]
    },
    "fewer steps than there are": {FRESH: ["test_fewer_steps_than_the_run_has_are_refused"]},
    "no user, no home, few files, other locale": {
        STREAMS: [
            "test_a_user_without_a_home_has_a_cache_that_nobody_else_writes",
            "test_as_many_files_may_be_open_as_the_system_allows",
            "test_a_run_without_a_name_and_one_in_another_encoding_are_refused_in_a_line",
        ]
    },
    "power loss": {
        "checkpoint/test_power_loss.py": [
            "test_a_file_is_there_as_it_was_or_as_it_is",
            "test_a_folder_is_there_whole_or_not_at_all",
            "test_a_step_that_is_there_is_whole",
            "test_at_every_cut_the_last_step_that_counted_is_read_and_its_record_is_there",
        ]
    },
    "a config that claims much": {
        "weights/test_config_json.py": [
            "test_a_config_that_claims_more_than_its_tensors_is_refused_at_once",
            "test_levels_and_layers_of_a_vae_are_bounded_together",
        ],
        STRANGERS: ["test_what_configs_claim_is_refused_by_name"],
    },
    "a tar that claims much": {
        "ingest/test_source_tars.py": [
            "test_a_huge_description_of_a_member_is_not_read_and_the_others_are",
            "test_a_description_that_claims_more_than_there_is_takes_no_memory",
            "test_a_sparse_member_and_one_that_would_fill_a_disk_are_left_out",
            "test_a_long_suffix_becomes_no_name_here",
        ]
    },
    "a damaged table": {"ingest/test_tables.py": ["test_no_illegal_table_is_read"]},
    "cards of others": READ_OR_REFUSED
    | {
        "evaluation/test_card.py": [
            "test_a_card_of_other_kinds_is_named_by_what_is_wrong",
            "test_a_value_that_is_no_number_is_not_ranked",
        ]
    },
    "malformed tokenizers and schedulers": READ_OR_REFUSED,
    "escapes in names": {"test_progress.py": ["test_control_characters_are_escaped"]},
    "arrays that claim much": READ_OR_REFUSED
    | {"weights/test_files.py": ["test_an_npz_header_claims_what_the_entry_holds"]},
    "ports open to all": {"run/test_listening.py": ["test_processes_of_one_machine_listen_on_loopback_alone"]},
    "weights of eight bits": {
        "published/test_wrapped_and_mixed.py": ["test_every_value_of_eight_bits_is_that_of_torch"]
    },
    "animations of huge frames": {"video/test_survey.py": ["test_an_animation_has_fewer_pixels_than_a_video_may"]},
    "words of libraries": {
        "weights/test_kinds.py": ["test_damage_anywhere_is_an_error_in_our_words_or_other_numbers"],
        "cli/test_failure_messages.py": ["test_what_a_library_raises_is_said_of_the_file"],
    },
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_tests(fault):
    for file, names in FAULTS[fault].items():
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert set(names) <= there, file
