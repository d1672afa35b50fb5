//! Owns: what the stub says word for word, shared with the tests that expect it unchanged.
//!
//! Number text that no double holds, unknown members, odd spacing, escapes and key order: all of
//! it must arrive at the client as it stands here.

/// A tool as `tools/list` shows it, but for its name.
pub(crate) const RICH_TOOL_REST: &str = r#""zeta" : 1, "title":"Rich \u00e9\ud83d\ude00","description":"line\nbreak",  "inputSchema":{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","$defs":{"part":{"$anchor":"part","type":"string"}},"properties":{"n":{"type":"integer","maximum":12345678901234567890}}},"outputSchema":{"type":"object","additionalProperties":true},"annotations":{"title":"Annotated","readOnlyHint":true,"x-hint":1.50},"icons":[{"src":"data:image/png;base64,AA==","sizes":["16x16"]}],"execution":{"taskSupport":"forbidden"},"_meta":{"example.com/big":9007199254740993,"example.com/exp":1E+2},"alpha":null"#;

/// The `result` of the tool `rich`.
pub(crate) const RICH_RESULT: &str = r#"{"zzz":1,  "content":[{"type":"text","text":"\u0041\/\ud83d\ude00 \"quoted\"","annotations":{"audience":["user"],"priority":0.50},"_meta":{"n":9007199254740993}},{"type":"resource_link","uri":"stub://elsewhere/x","name":"x","x-unknown":[]}], "structuredContent":{"big":12345678901234567890123,"neg":-0.0,"exp":1e-7,"b":{"a":[[],{}]}},"isError":false,"_meta":{"example.com/k":18446744073709551617},"aaa":[1 , 2]}"#;

/// The `error` of the tool `rich_error`.
pub(crate) const RICH_ERROR: &str = r#"{"code":-31999,"message":"as \u0065ver \"said\"","data":{"n":9007199254740993,"list":[1.0,null],"z":{"a":1}},"x-unknown":true}"#;

/// What the read of the fixed resource answers, with `NAME` for the stub's name.
pub(crate) const RICH_READ: &str = r#"{"contents":[{"uri":"stub://NAME/fixed","mimeType":"text/plain","text":"fixed of NAME","_meta":{"n":9007199254740993},"x":1.0}],"x-more":[1e2]}"#;

/// What the prompt answers, with `NAME` for the stub's name.
pub(crate) const RICH_PROMPT: &str = r#"{"description":"of NAME","messages":[{"role":"user","content":{"type":"text","text":"prompt of NAME"}, "x":9007199254740993}],"_meta":{"a":1.10}}"#;

/// An unknown member of each progress notification's `params`.
pub(crate) const PROGRESS_EXTRA: &str = r#""x-extra":{"n":9007199254740993}"#;

/// The data of the error that asks for an elicitation by URL first.
pub(crate) const ELICITATIONS: &str = r#"{"elicitations" : [{"mode":"url","elicitationId":"e-1","url":"https:\/\/example.com\/pay","message":"Pay \u0041","n":9007199254740993}],"x":1.0}"#;
