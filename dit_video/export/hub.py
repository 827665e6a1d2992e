"""Upload of an exported folder to the Hugging Face Hub."""

import importlib.util
from pathlib import Path

from dit_video.config.extras import install

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def check(repo: str) -> None:
    """Checks before an export that a push to `repo`, OWNER/NAME, can be tried: library, name and login.

    Raises:
        ValueError: huggingface_hub is not installed, the name is none, or nobody is logged in; says what to do.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ValueError(
            f"--format hub: the package huggingface_hub is not installed; install it with {install('hub')}"
        )
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if repo.count("/") != 1:
        raise ValueError(f"--push_to {repo}: must be OWNER/NAME, as in the address of the repository's page")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"--push_to {repo}: no name of a repository: {error}") from error
    if get_token() is None:
        raise ValueError(f"--format hub: nobody is logged in to the Hub; {_LOG_IN}")


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Creates the repository unless it exists, and commits the files of `folder` to it.

    Returns:
        the address of the commit.

    Raises:
        ValueError: the Hub was not reached or refused, or the repository is there and public where it must be private.
            `folder` is as it was.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi(library_name="dit_video")
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise ValueError(
                f"--push_to {repo}: is there and public, and stays so; make it private on its page, name another or "
                "leave out --private"
            )
        return api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Exported by dit-video").commit_url
    # RuntimeError is what its uploader, in another language, fails with.
    except (HTTPError, OSError, RuntimeError) as error:
        raise ValueError(
            f"{folder} is complete, but could not be pushed to {repo} at {api.endpoint}: {error}\n"
            f"If it was not let in, {_LOG_IN}. To push the folder again: hf upload {repo} {folder} ."
        ) from error
