"""The names that people paste: every form means what its site means by it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamapp.errors import InvalidRequest
from streamapp.models.reference import Civitai, Digest, Hub, Named, Reference, read_reference

SHA = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("pocket", Named("pocket")),
        ("  Dream Shaper v8.safetensors ", Named("Dream Shaper v8.safetensors")),
        ("civitai:123@456", Civitai(123, 456)),
        ("Civitai:123", Civitai(123)),
        ("https://civitai.com/models/4384", Civitai(4384)),
        ("https://civitai.com/models/4384/dreamshaper?modelVersionId=128713", Civitai(4384, 128713)),
        ("https://www.civitai.com/models/4384?modelVersionId=128713#comments", Civitai(4384, 128713)),
        ("https://civitai.com/api/download/models/128713", Civitai(None, 128713)),
        ("https://civitai.com/api/download/models/128713?type=Model&fileId=9", Civitai(None, 128713, 9)),
        ("urn:air:sdxl:checkpoint:civitai:123@456", Civitai(123, 456)),
        ("urn:air:sd1:lora:civitai:123", Civitai(123)),
        ("air:sd1:lora:civitai:123@456+789.safetensors", Civitai(123, 456, 789)),
        ("sdxl:checkpoint:civitai:123@456", Civitai(123, 456)),
        ("URN:AIR:SDXL:LORA:CIVITAI:123@456", Civitai(123, 456)),
        (
            "urn:air:flux1:checkpoint:huggingface:black-forest-labs/FLUX.1-dev@abc",
            Hub("black-forest-labs/FLUX.1-dev", None, "abc"),
        ),
        (SHA.upper(), Digest(SHA)),
        (f"sha256:{SHA}", Digest(SHA)),
        ("ABCDEF0123", Digest("abcdef0123")),
        ("stabilityai/sdxl-turbo", Hub("stabilityai/sdxl-turbo")),
        ("hf:owner/name:sub/file.safetensors", Hub("owner/name", "sub/file.safetensors")),
        ("https://huggingface.co/owner/name", Hub("owner/name")),
        (
            "https://huggingface.co/owner/name/resolve/fp16/unet/x.safetensors",
            Hub("owner/name", "unet/x.safetensors", "fp16"),
        ),
        ("https://huggingface.co/owner/name/blob/main/a%20b.safetensors", Hub("owner/name", "a b.safetensors")),
    ],
)
def test_each_form_means_what_its_site_means(text: str, meant: Reference) -> None:
    assert read_reference(text) == meant


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://example.com/model.safetensors", "example.com is no site"),
        ("https://civitai.com.evil.example/models/1", "civitai.com.evil.example is no site"),
        ("https://evil.example\\@civitai.com/models/1", "no user name"),
        ("https://[civitai.com/models/1", "no web address"),
        ("file:///etc/passwd", "is no site"),
        ("https://civitai.com/images/123", "no page of a model"),
        ("https://civitai.com/models/1?modelVersionId=x", "must be a number"),
        ("https://huggingface.co/owner", "no page of a repository"),
        ("owner/name:../../etc/passwd", "leads out"),
        ("owner/name:/etc/passwd", "leads out"),
        ("https://huggingface.co/owner/name/resolve/main/..%2f..%2fx.safetensors", "leads out"),
        ("urn:air:sdxl:checkpoint:civitai:abc@456", "are numbers"),
        ("urn:air:sdxl:checkpoint:huggingface:nobody", "no repository"),
    ],
)
def test_what_leads_nowhere_good_is_refused_with_a_reason(text: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        read_reference(text)


@given(st.text(max_size=120))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        found = read_reference(text)
    except InvalidRequest:
        return
    assert not (isinstance(found, Hub) and found.file and ".." in found.file.split("/"))
