"""Tokens of texts and texts of tokens, by a folder's tokenizer.json and the settings beside it."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_runtime.bundle.extras import require, require_version
from sae_runtime.bundle.hub import refuse_link_out
from sae_runtime.bundle.regular import read_bytes
from sae_runtime.text.chat_template import ChatTemplates, read_templates
from sae_runtime.text.settings import NAMES, Settings, read_settings, side
from sae_runtime.text.streaming import Stream
from sae_runtime.text.tokens import Tokens, bare, frame_of, from_encoding, from_ids, limited, windows_of

_MOST_IDS = 1 << 24
_SAMPLE = 64  # ids whose text shows which special tokens the tokenizer puts around a text
_LONG = 4096  # characters of a text, from which on other threads must be able to run while it is read
_LARGEST = 1 << 28  # bytes of a tokenizer.json; the largest vocabularies in use take 40 MB


class Tokenizer:
    """A tokenizer as transformers would load it. It is safe in several threads, pickles, and works after a fork.

    Attributes:
        padding_side, truncation_side: "left" or "right".
        pad_id: the id of padding; None: the folder names none.
        end_ids: ids that end a generated text.
        positions: the number of tokens for which the model has positions; None: not known.
        max_length: the model's largest number of tokens by all its files; None: not known.
        special_tokens: the special token of each role, such as "eos_token".
        special_ids: ids of all special tokens.
        size: one more than the largest id.
    """

    def __init__(self, home: Path, text: str, *, lower: bool = False) -> None:
        self._home, self._text, self._lower = home, text, lower
        settings = read_settings(home)
        self._rust = _opened(home, text, settings)
        _lower_as_told(self._rust, settings)
        if lower:
            _lower_first(self._rust, text)
        padding, truncation = self._rust.padding or {}, self._rust.truncation or {}
        self._rust.no_padding()
        self._rust.no_truncation()
        config = settings.config
        self.padding_side = side(config.get("padding_side", padding.get("direction", "right")), "padding_side")
        self.truncation_side = side(
            config.get("truncation_side", truncation.get("direction", "right")), "truncation_side"
        )
        self.positions = settings.positions
        self.max_length = min(filter(None, (settings.max_length, settings.positions)), default=None)
        self.special_tokens = {name: _content(token) for name, token in settings.named.items()}
        if padding:
            self.special_tokens.setdefault("pad_token", padding["pad_token"])
        self._ids = {name: self._rust.token_to_id(token) for name, token in self.special_tokens.items()}
        end, pad = self._ids.get("eos_token"), self._ids.get("pad_token")
        self.end_ids = settings.end_ids or (() if end is None else (end,))
        self.pad_id: int | None = settings.pad_id if pad is None else pad
        self.size = 1 + max(self._rust.get_vocab().values(), default=-1)
        if self.size > _MOST_IDS:
            raise ValueError(
                f"{home / 'tokenizer.json'} has the id {self.size - 1}, far beyond any model's; get a sound one"
            )
        self._special_by_id = np.zeros(self.size, np.bool_)
        self.special_ids = frozenset(self._special_ids([_content(token) for token in settings.more]))
        self._special_by_id[list(self.special_ids)] = True
        self._around: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None  # ids of special tokens around a text
        self._templates: ChatTemplates = read_templates(home, config, self.special_tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(Tokenizer, lower=self._lower), (self._home, self._text)

    def lowering(self) -> "Tokenizer":
        """The same tokenizer for texts in lower case; special tokens in a text and offsets stay as they are."""
        return Tokenizer(self._home, self._text, lower=True)

    @property
    def splits_special(self) -> bool:
        """Whether the name of a special token in a text is plain text, as tokenizer_config.json may say."""
        return bool(self._rust.encode_special_tokens)

    def to_json(self) -> str:
        """tokenizer.json with what the files beside it change, and without padding and truncation.

        >>> '"type":"WordPiece"' in open_tokenizer(tokenizer_path).to_json()
        True
        """
        text: str = self._rust.to_str()
        return text

    def encode(
        self, texts: Sequence[str], *, limit: int | None = None, prefix: str = "", frame: bool = True
    ) -> list[Tokens]:
        """The tokens of texts, as transformers' fast tokenizers give them.

        Args:
            texts: n texts; an empty one has special tokens alone.
            limit: largest number of tokens of a text; None: all.
            prefix: a prompt that goes before each text. Offsets count the text's own characters.
            frame: add the special tokens around a text. A chat template writes them itself.

        Raises:
            ValueError: a text is no str or holds half of a character, or the limit leaves no room for a token.

        >>> (tokens,) = open_tokenizer(tokenizer_path).encode(["Open the file"])
        >>> tokens.ids.tolist(), tokens.offsets.tolist()
        ([2, 8, 7, 9, 3], [[0, 0], [0, 4], [5, 8], [9, 13], [0, 0]])
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise ValueError(f"texts must be a list of texts, got {type(texts).__name__}; put one text into a list")
        whole = [prefix + text for text in texts] if prefix and _all_text(texts) else texts
        tokens = [from_encoding(one, self._special_by_id, len(prefix)) for one in self._encodings(whole, frame)]
        return tokens if limit is None else [limited(one, limit, self.truncation_side) for one in tokens]

    def given(self, ids: NDArray[np.int32]) -> Tokens:
        """The tokens of a text of which only the ids are known, as harvest reads them.

        Padding and special tokens around the text, where the ids have them, are put there anew.

        Args:
            ids: of this tokenizer, [t].

        Raises:
            ValueError: an id is not one of this tokenizer, or it makes no text of them.

        >>> open_tokenizer(tokenizer_path).given(np.array([8, 9], np.int32)).ids.tolist()
        [2, 8, 9, 3]
        """
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.size:
            raise ValueError(
                f"token id {ids.max() if ids.min() >= 0 else ids.min()}, the tokenizer has ids up to {self.size - 1}; "
                "take the column that this model's tokenizer made"
            )
        if self._around is None:
            text = self.decode(ids[:_SAMPLE].tolist()).strip() or "a"
            shown = self.encode([text])[0]
            if shown.special.all():
                raise ValueError("the tokenizer makes no text of the token ids; give texts instead")
            before, after = frame_of(shown)
            self._around = shown.ids[:before], shown.ids[len(shown.ids) - after :]
        others = {number for name, number in self._ids.items() if name != "pad_token"}
        pad = self._ids.get("pad_token")
        own = bare(ids, *self._around, None if pad in others else pad)
        return from_ids(own, *self._around, self._special_by_id)

    def windows(self, text: str, limit: int, *, prefix: str = "") -> list[Tokens]:
        """The tokens of a long text in windows, as harvest cuts it: one after the other, special tokens in each.

        Args:
            text: the text. One without tokens gives one window, of special tokens alone.
            limit: largest number of tokens of a window, with the special ones.
            prefix: a prompt that goes before the text, in the first windows alone.

        Raises:
            ValueError: as `encode`.

        >>> [one.ids.tolist() for one in open_tokenizer(tokenizer_path).windows("Open the file", limit=4)]
        [[2, 8, 7, 3], [2, 9, 3]]
        """
        return list(windows_of(self.encode([text], prefix=prefix)[0], limit))

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens.

        Args:
            ids: of the tokens.
            special: write special tokens too.

        Raises:
            ValueError: an id is negative or has more than 32 bits.

        >>> open_tokenizer(tokenizer_path).decode([9, 8])
        'file open'
        """
        try:
            text: str = self._rust.decode([int(one) for one in ids], skip_special_tokens=not special)
        except OverflowError as error:
            raise ValueError(f"ids of this tokenizer are 0 to {self.size - 1}, got {min(ids)} to {max(ids)}") from error
        return text

    def token(self, number: int) -> str | None:
        """The vocabulary's name of an id, such as "##ing" or "Ġthe"; None: there is no such id."""
        name: str | None = self._rust.id_to_token(number)
        return name

    def stream(self, *, special: bool = False) -> Stream:
        """What turns generated ids into text, one after the other.

        >>> stream = open_tokenizer(tokenizer_path).stream()
        >>> [stream.push(8), stream.push(9), stream.end()]
        ['open', ' file', '']
        """
        return Stream(self._rust, special=special)

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> str:
        """The text of a conversation by the folder's chat template; encode it with `frame=False`.

        Args:
            messages: each has "role" and "content".
            settings: what the template knows besides: `add_generation_prompt`, `tools`, `documents`, and others.

        Raises:
            ImportError: Jinja is not installed, or too old.
            ValueError: the folder has no chat template, or the template fails or does what no template may.

        >>> open_tokenizer(tokenizer_path).chat([{"role": "user", "content": "Open the file"}])
        'user: Open the file'
        """
        return self._templates.render(messages, **settings)

    def _encodings(self, texts: Sequence[str], frame: bool) -> Sequence[Any]:
        try:
            if len(texts) == 1 and len(texts[0]) < _LONG:
                return [self._rust.encode(texts[0], add_special_tokens=frame)]  # without starting its threads
            if not all(isinstance(text, str) for text in texts):
                raise TypeError  # it would take a tuple of two as a pair of texts
            encoded: Sequence[Any] = self._rust.encode_batch(list(texts), add_special_tokens=frame)
            return encoded
        except BaseException as error:  # its panics are no Exceptions
            _all_text(texts)
            raise _mended(error, f"the tokenizer in {self._home} fails on a text") from error

    def _special_ids(self, more: Sequence[str]) -> list[int]:
        """Ids of special tokens. The token for unknown words is one of them only if it has another role too."""
        named = {self._ids[name] for name in NAMES if name in self._ids and name != "unk_token"}
        others = {self._rust.token_to_id(token) for token in more} - {self._ids.get("unk_token")}
        return [one for one in named | others if one is not None]


def open_tokenizer(home: str | Path, *, vocabulary: int | None = None) -> Tokenizer:
    """Open the tokenizer of a folder.

    Args:
        home: a folder with tokenizer.json, and what transformers puts beside it.
        vocabulary: number of ids that the model knows; None: not compared.

    Raises:
        ImportError: `tokenizers` is not installed.
        OSError: a file may not be read.
        ValueError: the folder has no tokenizer.json, it cannot be read, or it has ids that the model does not know.

    >>> open_tokenizer(tokenizer_path).max_length
    64
    >>> open_tokenizer(tokenizer_path, vocabulary=5)
    Traceback (most recent call last):
    ValueError: .../tokenizer.json has ids up to 9, the model knows 5 (0 to 4); take the tokenizer that belongs to ...
    """
    require("text")
    home = Path(home)
    path = home / "tokenizer.json"
    if not path.exists():
        raise ValueError(_absent(home))
    refuse_link_out(path, home)
    try:
        text = read_bytes(path, most=_LARGEST).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}); get a sound one") from error
    tokenizer = Tokenizer(home, text)
    if vocabulary is not None and tokenizer.size > vocabulary:
        raise ValueError(
            f"{path} has ids up to {tokenizer.size - 1}, the model knows {vocabulary} (0 to {vocabulary - 1}); "
            "take the tokenizer that belongs to this model"
        )
    return tokenizer


def _opened(home: Path, text: str, settings: Settings) -> Any:
    import tokenizers  # only here, so that what needs no text loads faster
    from tokenizers import AddedToken, Tokenizer

    require_version("text", "tokenizers", tokenizers.__version__, (0, 22))

    def added(token: Any) -> Any:
        rules = {"normalized": False, "content": token} if isinstance(token, str) else dict(token)
        return AddedToken(**rules, special=True)

    try:
        rust = Tokenizer.from_str(text)
        known = {token.content: repr(token) for token in rust.get_added_tokens_decoder().values()}
        told = [AddedToken(**rules) for rules in settings.added]
        new = [token for token in told if token.content not in known]
        changed = [token for token in told if known.get(token.content, repr(token)) != repr(token)]
        rust.add_tokens([*new, *changed] if settings.redefines else new)
        special = (*settings.named.values(), *settings.more)
        absent = [token for token in special if rust.token_to_id(_content(token)) is None]
        rust.add_special_tokens([added(token) for token in absent])
        rust.encode_special_tokens = settings.config.get("split_special_tokens") is True  # as plain text
    except BaseException as error:  # its panics are no Exceptions
        raise _mended(
            error, f"{home / 'tokenizer.json'} cannot be read by tokenizers {tokenizers.__version__}"
        ) from error
    return rust


def _lower_as_told(rust: Any, settings: Settings) -> None:
    """Let tokenizer_config.json decide about case and accents, where transformers' class for BERT does."""
    from tokenizers.normalizers import BertNormalizer

    normalizer = rust.normalizer
    if settings.kind in ("bert", "distilbert", "electra", "mobilebert", "mpnet") and isinstance(
        normalizer, BertNormalizer
    ):
        normalizer.lowercase = settings.config.get("do_lower_case", True) is not False
        normalizer.handle_chinese_chars = settings.config.get("tokenize_chinese_chars", True) is not False
        accents = settings.config.get("strip_accents")
        normalizer.strip_accents = accents if isinstance(accents, bool) else None
        rust.normalizer = normalizer


def _lower_first(rust: Any, text: str) -> None:
    """Make text lower case before all else, unless that is a step already, as sentence-transformers does."""
    from tokenizers.normalizers import Lowercase, Sequence

    told = json.loads(text).get("normalizer") or {}
    if not any(step.get("type") == "Lowercase" for step in told.get("normalizers", [told])):
        rust.normalizer = Sequence([Lowercase(), *([rust.normalizer] if told else [])])


def _mended(error: BaseException, what: str) -> BaseException:
    """What to raise for an error of `tokenizers`: its panics and plain Exceptions become ValueErrors."""
    if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
        return error
    reason = " ".join(str(error).split())[:300]
    return ValueError(f"{what} ({reason}); update tokenizers, or get a sound tokenizer.json")


def _absent(home: Path) -> str:
    others = [n for n in ("vocab.txt", "vocab.json", "tokenizer.model", "spiece.model") if (home / n).exists()]
    has = f"; it has {', '.join(others)}" if others else ""
    return (
        f"{home} has no tokenizer.json{has}; make it where transformers is installed: "
        f"AutoTokenizer.from_pretrained({str(home)!r}).save_pretrained({str(home)!r})"
    )


def _content(token: Any) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _all_text(texts: Sequence[Any]) -> bool:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {number} is {type(text).__name__}, expected str; decode bytes by their encoding")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {number} holds half of a character (a lone surrogate at character {error.start}); "
                "read the file as UTF-8 with errors='replace'"
            ) from error
    return True
