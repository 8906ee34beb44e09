"""Hostile bodies, and what they claim to be, at every endpoint that takes one."""

import pytest
from hostile import MANY_FIELDS, TAKE_A_BODY, UNKNOWN, ask, media_type, path_of, valid_body

pytestmark = pytest.mark.engines

# ---------------------------------------------------------------- bodies

BODIES = [
    ("empty", b"", 400),
    ("blank", b" \t\r\n", 400),
    ("64 KiB of blanks", b" " * 65_536, 400),
    ("more than 64 KiB", b'{"x": "' + b"x" * 65_536 + b'"}', 413),
    ("null", b"null", 400),
    ("a list", b"[]", 400),
    ("a list of an object", b'[{"name": "Maxi"}]', 400),
    ("a bare string", b'"name"', 400),
    ("a bare number", b"1", 400),
    ("a bare true", b"true", 400),
    ("a bare NaN", b"NaN", 400),
    ("cut off after the brace", b"{", 400),
    ("cut off before the brace", b'{"name": "Maxi"', 400),
    ("cut off in a string", b'{"name": "Ma', 400),
    ("cut off in an escape", b'{"name": "\\u00', 400),
    ("cut off in a character", b'{"name": "Max\xe2\x82', 400),
    ("single quotes", b"{'name': 'Maxi'}", 400),
    ("a bare key", b'{name: "Maxi"}', 400),
    ("a comma too many", b'{"name": "Maxi",}', 400),
    ("a comma alone", b"{,}", 400),
    ("a comment", b'{"name": "Maxi"} // me', 400),
    ("two objects", b'{"name": "Maxi"}{"name": "Maxi"}', 400),
    ("a word behind it", b'{"name": "Maxi"} x', 400),
    ("a key twice", b'{"name": "Maxi", "name": "Dave"}', 400),
    ("a key twice, once escaped", b'{"name": "Maxi", "n\\u0061me": "Dave"}', 400),
    ("a key twice inside", b'{"x": [{"y": 1, "y": 1}]}', 400),
    ("NaN", b'{"x": NaN}', 400),
    ("NaN in a list", b'{"x": [NaN]}', 400),
    ("Infinity", b'{"x": Infinity}', 400),
    ("-Infinity", b'{"x": -Infinity}', 400),
    ("1e999", b'{"x": 1e999}', 400),
    ("-1e999", b'{"x": -1e999}', 400),
    ("an exponent of 5,000 digits", b'{"x": 1e' + b"9" * 5000 + b"}", 400),
    ("a float of 5,000 digits", b'{"x": ' + b"9" * 5000 + b".5}", 400),
    ("5,000 digits behind the point", b'{"x": 0.' + b"3" * 5000 + b"}", UNKNOWN),
    ("a number of 5,000 digits", b'{"x": ' + b"9" * 5000 + b"}", UNKNOWN),
    ("a negative number of 60,000 digits", b'{"x": -' + b"9" * 60_000 + b"}", UNKNOWN),
    ("a number that is almost nothing", b'{"x": 1e-99999}', UNKNOWN),
    ("a leading zero", b'{"x": 01}', 400),
    ("a leading plus", b'{"x": +1}', 400),
    ("no digit before the point", b'{"x": .5}', 400),
    ("no digit behind the point", b'{"x": 1.}', 400),
    ("hexadecimal", b'{"x": 0x1F}', 400),
    ("digits of another script", '{"x": ١}'.encode(), 400),
    ("60,000 brackets deep", b"[" * 60_000, 400),
    ("60,000 brackets, and closed again", b"[" * 30_000 + b"]" * 30_000, 400),
    ("a field 60,000 brackets deep", b'{"x": ' + b"[" * 60_000, 400),
    ("a field 30,000 brackets deep, closed", b'{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}", 400),
    ("10,000 objects deep", b'{"x":' * 10_000, 400),
    ("lists and objects in turn", b'[{"x":' * 9_000, 400),
    ("5,000 unknown fields", MANY_FIELDS, UNKNOWN),
    ("30,000 values", b'{"x": [' + b"1," * 30_000 + b"1]}", UNKNOWN),
    ("a byte that is not UTF-8", b'{"x": "\xff"}', 400),
    ("Latin-1", '{"x": "Zoë"}'.encode("latin-1"), 400),
    ("UTF-8 longer than need be", b'{"x": "\xc0\x80"}', 400),
    ("UTF-8 beyond Unicode", b'{"x": "\xf4\x90\x80\x80"}', 400),
    ("half a surrogate pair in UTF-8", b'{"x": "\xed\xa0\x80"}', 400),
    ("a surrogate pair in UTF-8", b'{"x": "\xed\xa0\xbd\xed\xb8\x80"}', 400),
    ("a key with half a surrogate pair", b'{"\\ud800": 1}', UNKNOWN),
    ("the two halves the wrong way round", b'{"x": "\\ude00\\ud83d"}', UNKNOWN),
    ("a byte order mark", b'\xef\xbb\xbf{"name": "Maxi"}', 400),
    ("UTF-16", '{"name": "Maxi"}'.encode("utf-16"), 400),
    ("UTF-16 without a mark", '{"name": "Maxi"}'.encode("utf-16-le"), 400),
    ("UTF-32", '{"name": "Maxi"}'.encode("utf-32"), 400),
    ("UTF-7", b"+AHsAIg-name+ACI: 1}", 400),
    ("NUL before it", b'\0{"name": "Maxi"}', 400),
    ("NUL behind it", b'{"name": "Maxi"}\0', 400),
    ("NUL in a string", b'{"name": "Max\0i"}', 400),
    ("a line break in a string", b'{"name": "Max\ni"}', 400),
    ("an unknown escape", b'{"name": "\\x41bcd"}', 400),
    ("an escape of three digits", b'{"name": "\\u123"}', 400),
    ("an empty key", b'{"": 1}', UNKNOWN),
    ("NUL as a key", b'{"\\u0000": 1}', UNKNOWN),
    ("a key of 60,000 characters", b'{"' + b"x" * 60_000 + b'": 1}', UNKNOWN),
    ("a key that is a pointer", b'{"#/a~1b/0": 1}', UNKNOWN),
    ("a key that JavaScript would obey", b'{"__proto__": {"name": "Maxi"}}', UNKNOWN),
    ("a key that Python would obey", b'{"__class__": "Maxi", "self": 1, "conn": 1}', UNKNOWN),
    ("a form", b"name=Maxi&email=maxi%40example.com", 400),
    ("XML", b"<?xml version='1.0'?><user name='Maxi'/>", 400),
    ("MessagePack", b"\x81\xa4name\xa4Maxi", 400),
    ("compressed", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", 400),
]


def test_a_body_that_is_no_json_object_or_has_unknown_fields_is_refused(judge):
    judge(
        (name, expected, (route.method, path_of(route), body), media_type(route))
        for route in TAKE_A_BODY
        for name, body, expected in BODIES
    )


LENGTHS = [
    ("negative", "-1"),
    ("a word", "abc"),
    ("an exponent", "1e3"),
    ("a blank before it", " 5"),
    ("a sign", "+5"),
    ("a line break behind it", "5\n"),
    ("hexadecimal", "0x10"),
    ("an underscore", "1_0"),
    ("a list", "5, 5"),
    ("of another script", "٥"),
    ("a superscript", "²"),
    ("19 digits", "9" * 19),
    ("5,000 digits", "9" * 5000),
    ("more than there is", "1000"),
]


def test_a_length_that_is_none_or_not_true_is_refused(judge):
    judge(
        (name, 400, (route.method, path_of(route), valid_body(route)), {"CONTENT_LENGTH": length})
        for route in TAKE_A_BODY
        for name, length in LENGTHS
    )


def test_chunks_that_the_server_has_decoded_are_not_decoded_again(api, app):
    api.project()
    body = b'{"name": "Shop"}'
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}
    decoded = chunked | {"wsgi.input_terminated": True}
    assert ask(app, "PUT", "/projects/1", body, **decoded).status == 200
    assert ask(app, "PUT", "/projects/1", body, **chunked).status == 400


# ---------------------------------------------------------------- media types

MEDIA_TYPES = [
    ("missing", None, 415),
    ("empty", "", 415),
    ("blank", " ", 415),
    ("a parameter alone", ";", 415),
    ("a charset alone", "; charset=utf-8", 415),
    ("text", "text/plain", 415),
    ("a form", "application/x-www-form-urlencoded", 415),
    ("a file", "multipart/form-data; boundary=application/json", 415),
    ("bytes", "application/octet-stream", 415),
    ("any", "*/*", 415),
    ("any of the kind", "application/*", 415),
    ("the older name", "text/json", 415),
    ("JSON text", "application/json-seq", 415),
    ("a problem", "application/problem+json", 415),
    ("another patch", "application/json-patch+json", 415),
    ("a suffix alone", "application/+json", 415),
    ("wrongly spelled", "application/jsn", 415),
    ("longer", "application/jsonp", 415),
    ("a blank inside", "application / json", 415),
    ("without a slash", "application", 415),
    ("without the first half", "json", 415),
    ("two of them", "application/json, text/plain", 415),
    ("the right one second", "text/plain, application/json", 415),
    ("the right one as a parameter", "text/plain; x=application/json", 415),
    ("in quotes", '"application/json"', 415),
    ("Latin-1 in it", "application/jsön", 415),
    ("a letter that looks alike", "application/jsоn".encode().decode("latin-1"), 415),
    ("NUL behind it", "application/json\0", 415),
    ("a no-break space behind it", "application/json\xa0", 415),
    ("60,000 letters", "application/json" + "x" * 60_000, 415),
    ("60,000 semicolons", "text/plain" + ";" * 60_000, 415),
    # These do name JSON: the body is read, and it is the unknown field that is refused.
    ("plain", "application/json", UNKNOWN),
    ("another case", "Application/JSON", UNKNOWN),
    ("with a charset", "application/json; charset=utf-8", UNKNOWN),
    ("with a charset in quotes", 'application/json;charset="UTF-8"', UNKNOWN),
    ("with an empty parameter", "application/json;", UNKNOWN),
    ("with an unknown parameter", "application/json; profile=https://example.com", UNKNOWN),
    ("with a blank before the parameter", "application/json ; charset=utf-8", UNKNOWN),
]


def test_a_body_must_be_labelled_as_json(judge):
    judge(
        (name, expected, (route.method, path_of(route), b'{"x": 1}'), {"CONTENT_TYPE": label})
        for route in TAKE_A_BODY
        for name, label, expected in MEDIA_TYPES
    )


def test_a_merge_patch_is_taken_by_patch_alone(judge):
    merge = {"CONTENT_TYPE": "application/merge-patch+json"}
    judge(
        (
            "a merge patch",
            UNKNOWN if route.method == "PATCH" else 415,
            (route.method, path_of(route), b'{"x": 1}'),
            merge,
        )
        for route in TAKE_A_BODY
    )
