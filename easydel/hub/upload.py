"""Uploads a directory to the Hub."""

from __future__ import annotations

from typing import Any

from easydel.hub.explain import explaining


def upload(directory: str, repo_id: str, *, private: bool | None, token: str | bool | None, **commit: Any) -> str:
    """Creates the repository if it does not exist, uploads all files in one commit, and returns its address."""
    from huggingface_hub import HfApi  # a third of a second to import

    api = HfApi(token=token)
    with explaining(repo_id, commit.get("revision")):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision := commit.get("revision"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=directory, **commit).commit_url)
