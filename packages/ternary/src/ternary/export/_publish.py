"""Exported files to the Hugging Face Hub and to GitHub Releases, through their own client libraries."""

from __future__ import annotations

from pathlib import Path

from ternary.errors import ExportError
from ternary.export._bundle import MANIFEST, verify
from ternary.export._files import optional

__all__ = ["to_github", "to_hub"]


def to_hub(
    directory: str | Path,
    repository: str,
    *,
    token: str | None = None,
    private: bool = False,
    endpoint: str | None = None,
) -> str:
    """Upload an exported folder to a model repository of the Hugging Face Hub, in one commit.

    The files are checked against their manifest first, so that no half-written export is published.

    Args:
        directory: What `export` wrote.
        repository: `owner/name`; made if it is not there.
        token: A write token; by default the one that `hf auth login` stored.
        private: Whether a new repository is private.
        endpoint: Address of another hub.

    Returns:
        The address of the commit.

    Raises:
        ManifestError: The files are not those that the manifest names.
        MissingExtraError: huggingface-hub is not installed.

    Example:
        >>> import tempfile
        >>> from ternary.export import to_hub
        >>> with tempfile.TemporaryDirectory() as empty:
        ...     to_hub(empty, "owner/name")  # refused: there is no complete export in the folder
        Traceback (most recent call last):
        ternary.errors.ManifestError: ...
    """
    manifest = verify(directory)
    hub = optional("huggingface_hub", "publish")
    api = hub.HfApi(endpoint=endpoint, token=token)
    api.create_repo(repository, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=str(directory),
        allow_patterns=[MANIFEST, *(f.name for f in manifest.files)],
        commit_message=f"Upload {manifest.model}",
    )
    return str(commit.commit_url)


def to_github(
    directory: str | Path,
    repository: str,
    tag: str,
    *,
    token: str,
    notes: str = "",
    draft: bool = False,
    base_url: str = "https://api.github.com",
) -> str:
    """Make a GitHub release of an exported folder, a file an asset.

    The release is a draft until every file is there, so no incomplete release is visible.

    Args:
        directory: What `export` wrote.
        repository: `owner/name`.
        tag: The release's tag, made from the default branch if it is not there.
        token: A token that may write releases.
        notes: Text of the release; by default the list of files with their digests.
        draft: Leave it a draft.
        base_url: Address of another GitHub's API.

    Returns:
        The address of the release.

    Raises:
        ManifestError: The files are not those that the manifest names.
        ExportError: GitHub refused.
        MissingExtraError: PyGithub is not installed.

    Example:
        >>> import tempfile
        >>> from ternary.export import to_github
        >>> with tempfile.TemporaryDirectory() as empty:
        ...     to_github(empty, "owner/name", "v1", token="...")  # refused: there is no complete export in the folder
        Traceback (most recent call last):
        ternary.errors.ManifestError: ...
    """
    manifest = verify(directory)
    github = optional("github", "publish")
    client = github.Github(auth=github.Auth.Token(token), base_url=base_url, retry=None)
    text = notes or "\n".join(f"- `{f.name}` {f.bytes:,} bytes, SHA-256 `{f.sha256}`" for f in manifest.files)
    try:
        release = client.get_repo(repository).create_git_release(tag, f"{manifest.model} {tag}", text, draft=True)
        for name in [*(f.name for f in manifest.files), MANIFEST]:
            release.upload_asset(str(Path(directory, name)), name=name, content_type="application/octet-stream")
        if not draft:
            release = release.update_release(release.name or tag, release.body or text, draft=False)
    except github.GithubException as e:
        raise ExportError(f"GitHub refused the release {tag} of {repository}: {e.status} {e.data}") from e
    finally:
        client.close()
    return str(release.html_url)
