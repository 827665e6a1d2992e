"""Where each case that once failed is a test: small inputs on which public complaints of this field could be repeated.

Case -> tests that hold its right value, in the file of their room. Their files are made, by tests/sample_videos.py and
the functions beside them. docs/data.md says what is honoured and what is refused.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PICTURES, SURVEY, TIMES = "video/test_pictures.py", "video/test_survey.py", "video/test_times.py"
TABLES, SIDECARS, INGEST = "ingest/test_tables.py", "ingest/test_sidecars.py", "ingest/test_ingest.py"
PREFLIGHT, WRAPPED = "run/test_preflight.py", "published/test_wrapped_and_mixed.py"

CASES = {
    "alpha": {PICTURES: ["test_alpha_is_over_black_whatever_is_hidden", "test_alpha_of_vp9_is_seen"]},
    "animated_avif_webp": {
        PICTURES: ["test_a_still_is_a_picture_and_an_animation_a_video", "test_an_animated_webp_is_refused_by_name"]
    },
    "caption_commas": {TABLES: ["test_no_illegal_table_is_read"]},
    "caption_encodings": {TABLES: ["test_any_legal_table_comes_back", "test_no_illegal_table_is_read"]},
    "caption_jsonl": {TABLES: ["test_json_lines_come_back"], SIDECARS: ["test_a_hugging_face_folder_is_read"]},
    "caption_keys": {
        TABLES: ["test_ways_of_writing_a_path_make_no_difference", "test_the_nearest_name_is_shown"],
        SIDECARS: ["test_a_table_of_other_files_shows_a_key_beside_a_name"],
    },
    "caption_sidecar": {SIDECARS: ["test_captions_and_classes_beside_a_video_are_its_own"]},
    "damaged_but_decodable": {
        SURVEY: [
            "test_a_damaged_group_of_pictures_is_left_out_and_counted",
            "test_a_file_with_nothing_whole_is_refused_as_damaged",
        ]
    },
    "frame_folders": {
        "video/test_frame_folder.py": [
            "test_names_are_in_the_order_of_their_numbers",
            "test_they_are_read_by_ingest_and_by_fvd",
        ]
    },
    "fvd_too_short": {"cli/test_evaluate.py": ["test_a_card_says_which_videos_were_too_short_to_be_judged"]},
    "gif_clock": {
        TIMES: [
            "test_a_gif_plays_at_its_rate_on_the_average_and_has_every_frame",
            "test_thirty_frames_a_second_are_three_three_and_four_hundredths",
            "test_a_gif_of_more_than_fifty_frames_a_second_says_that_it_is_slower",
        ]
    },
    "hdr_pq": {PICTURES: ["test_hdr_is_shown_as_its_sdr_scene"]},
    "import_lfs": {"weights/test_kinds.py": ["test_what_is_no_weights_is_called_what_it_is_whatever_its_name"]},
    "import_mixed_types": {WRAPPED: ["test_any_mixture_of_types_is_read_exactly"]},
    "import_prefix": {WRAPPED: ["test_a_prefix_that_all_names_have_is_left_out"]},
    "import_variant": {WRAPPED: ["test_a_variant_that_is_alone_is_read_whole_or_in_shards"]},
    "interlaced": {PICTURES: ["test_fields_are_deinterlaced_as_ffmpeg_does_in_windows_too"]},
    "labels_beyond_classes": {
        PREFLIGHT: ["test_what_does_not_fit_is_refused_with_both_numbers"],
        TABLES: ["test_numbers_sort_as_numbers"],
    },
    "mirrored_orientation": {PICTURES: ["test_all_eight_orientations_are_what_ffmpeg_makes_of_them"]},
    "mixed_rates": {
        "data/test_transforms.py": [
            "test_a_clip_has_the_rate_that_is_asked_for_from_frames_nearest_in_time",
            "test_the_rates_of_clips_are_those_of_all",
        ],
        "ingest/test_video_folder.py": ["test_videos_of_several_rates_are_judged_at_one_if_it_is_asked_for"],
    },
    "names_as_markup": {"test_progress.py": ["test_a_name_is_printed_as_it_is", "test_control_characters_are_escaped"]},
    "no_held_out": {
        PREFLIGHT: [
            "test_what_fits_is_said_nothing_of_but_what_is_left_out",
            "test_what_does_not_fit_is_refused_with_both_numbers",
            "test_a_codec_is_measured_against_still_pictures_of_held_out_clips",
        ]
    },
    "rate_from_times": {TIMES: ["test_any_sequence_of_frame_times_comes_back_as_even_frames"]},
    "resolution_change": {SURVEY: ["test_a_change_of_size_ends_the_video_and_squeezes_nothing"]},
    "small_held_out": {PREFLIGHT: ["test_every_evaluator_takes_what_the_split_gives_and_no_more"]},
    "splits_and_more": {INGEST: ["test_folders_are_classes_or_splits"]},
    "stem_with_sidecars": {SIDECARS: ["test_a_stem_names_the_video_and_not_what_lies_beside_it"]},
    "tilde": {"cli/test_usage.py": ["test_every_path_option_means_what_it_means_in_a_shell"]},
    "too_short_videos": {
        PREFLIGHT: [
            "test_what_fits_is_said_nothing_of_but_what_is_left_out",
            "test_there_is_a_clip_of_every_video_that_is_long_enough_for_statistics",
        ]
    },
    "variable_rate": {
        TIMES: [
            "test_of_a_file_with_a_hole_the_longest_stretch_is_the_video",
            "test_uneven_times_become_the_nearest_frames_at_their_mean_rate",
        ]
    },
}


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_its_tests(case):
    for file, names in CASES[case].items():
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert set(names) <= there, file
