//! Owns: the tests of the scanner: what it finds, and what it refuses.
//! Never: bytes that come in pieces (`watch`).
//! Next: nothing.

use super::*;

fn of(message: &str, span: Option<Span>) -> Option<&str> {
    span.map(|span| std::str::from_utf8(span.of(message.as_bytes())).unwrap())
}

fn fault(message: &str) -> ScanFault {
    scan(message.as_bytes()).expect_err(message)
}

/// What has no value that both sides could agree on is no id; elsewhere it is the receiver's affair: a
/// program that cuts a text in the midst of an emoji sends half a pair.
#[test]
fn what_only_some_readers_understand_is_passed_on_but_no_id() {
    for (value, fault) in [
        ("-1e30932600", ScanFault::NumberRange),
        ("1e309", ScanFault::NumberRange),
        ("-1E+400", ScanFault::NumberRange),
        (r#""\ud83d""#, ScanFault::Surrogate),
        (r#""a\ude00b""#, ScanFault::Surrogate),
        (r#""\ud83d\u0041""#, ScanFault::Surrogate),
    ] {
        let message = format!(r#"{{"jsonrpc":"2.0","id":{value},"result":{{}}}}"#);
        assert_eq!(scan(message.as_bytes()), Err(fault), "{value}");
        let message =
            format!(r#"{{"jsonrpc":"2.0","id":"\ud83d\ude00","result":{{"c":{value}}}}}"#);
        assert!(scan(message.as_bytes()).is_ok(), "{value}");
    }
}

#[test]
fn a_tool_call() {
    let message = r#" {"jsonrpc":"2.0", "id" : 9007199254740993,"method":"tools/call","x":[{}],
        "params":{"name":"files__re\u0061d","arguments":{"path":"/ä","n":1.0},
        "_meta":{"a":{"progressToken":3},"progressToken":"t\"1"}}}"#;
    let found = scan(message.as_bytes()).unwrap();
    assert_eq!(found.kind, Kind::Request);
    assert_eq!(of(message, found.id), Some("9007199254740993"));
    assert_eq!(of(message, found.method), Some(r#""tools/call""#));
    assert_eq!(of(message, found.name), Some(r#""files__re\u0061d""#));
    assert_eq!(found.name.unwrap().text(message.as_bytes()).unwrap(), "files__read");
    assert_eq!(of(message, found.arguments), Some(r#"{"path":"/ä","n":1.0}"#));
    assert_eq!(of(message, found.progress_token), Some(r#""t\"1""#));
    assert!(of(message, found.meta).unwrap().starts_with(r#"{"a""#));
    assert!(of(message, found.params).unwrap().ends_with("}}"));
    assert_eq!(found.uri, None);
    assert_eq!(found.result, None);
}

#[test]
fn params_may_stand_before_method() {
    let message = r#"{"params":{"uri":"a:b"},"method":"resources/read","id":"1","jsonrpc":"2.0"}"#;
    let found = scan(message.as_bytes()).unwrap();
    assert_eq!(of(message, found.uri), Some(r#""a:b""#));
    assert_eq!(of(message, found.id), Some(r#""1""#));
}

#[test]
fn slashes_written_with_escapes() {
    // PHP's json_encode writes every slash so.
    let message =
        r#"{"jsonrpc":"2.0","id":1,"method":"tools\/call","params":{"_meta":{"io.x\/y":1}}}"#;
    let found = scan(message.as_bytes()).unwrap();
    assert_eq!(found.method_name(message.as_bytes()).unwrap(), "tools/call");
}

#[test]
fn notifications() {
    let progress = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":7,"progress":1}}"#;
    let found = scan(progress.as_bytes()).unwrap();
    assert_eq!(found.kind, Kind::Notification);
    assert_eq!(of(progress, found.progress_token), Some("7"));
    let cancelled = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"a","reason":"b"}}"#;
    let found = scan(cancelled.as_bytes()).unwrap();
    assert_eq!(of(cancelled, found.request_id), Some(r#""a""#));
    assert_eq!(found.progress_token, None);
    // A request's params.progressToken is some parameter of its own.
    let request = r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"progressToken":7}}"#;
    assert_eq!(scan(request.as_bytes()).unwrap().progress_token, None);
}

#[test]
fn a_tool_says_that_it_failed() {
    for (result, failed) in [
        (r#"{"content":[],"isError":true}"#, true),
        (r#"{"is\u0045rror": true }"#, true),
        (r#"{"isError":false}"#, false),
        (r#"{"isError":"true"}"#, false),
        (r#"{"isError":false,"isError":true}"#, false),
        (r#"{"a":{"isError":true},"iserror":true}"#, false),
        (r#"[{"isError":true}]"#, false),
        ("null", false),
        ("{}", false),
    ] {
        let message = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
        let found = scan(message.as_bytes()).unwrap();
        assert_eq!(found.tool_error, failed, "{result}");
        assert_eq!(of(&message, found.result).unwrap(), result);
    }
}

#[test]
fn the_type_of_a_result_is_its_own() {
    for (result, kind) in [
        (r#"{"resultType":"complete"}"#, Some(r#""complete""#)),
        (r#"{"content":[{"resultType":1}],"result\u0054ype": "task" }"#, Some(r#""task""#)),
        (r#"{"resultType":null,"resultType":"complete"}"#, Some("null")),
        (r#"{"resulttype":"complete","a":{"resultType":"complete"}}"#, None),
        (r#"[{"resultType":"complete"}]"#, None),
    ] {
        let message = format!(r#"{{"resultType":1,"jsonrpc":"2.0","id":1,"result":{result}}}"#);
        let mut found = scan(message.as_bytes()).unwrap();
        assert_eq!(of(&message, found.result_type), kind, "{result}");
        let id = found.id.unwrap();
        let longer = crate::jsonrpc::splice(message.as_bytes(), &[(id, b"1234")]);
        found.follow(id, 4);
        assert_eq!(found.result_type, scan(&longer).unwrap().result_type);
    }
}

/// One pass does for ASCII; wherever else a byte beyond it stands, the whole is looked at.
#[test]
fn bytes_that_are_no_text_are_found_in_strings_of_any_length() {
    for length in [0, 1, 7, 8, 15, 16, 31, 40, 64, 100, 300, 700] {
        let text = "x".repeat(length);
        let message = format!(r#"{{"jsonrpc":"2.0","id":1,"result":["{text}é"," {text}"]}}"#);
        assert!(scan(message.as_bytes()).is_ok(), "{length}");
        let start = message.find('[').unwrap();
        for at in start..message.len() {
            let mut bytes = message.clone().into_bytes();
            bytes[at] = 0xFF;
            assert_eq!(scan(&bytes), Err(ScanFault::Utf8), "{length}, {at}");
            let mut watch = super::super::Watch::new();
            assert_eq!(watch.feed(&bytes), Err(ScanFault::Utf8), "{length}, {at}");
        }
    }
    // What else is wrong is said of text alone.
    assert_eq!(scan(b"{\xFF"), Err(ScanFault::Utf8));
    assert_eq!(scan("{é".as_bytes()), Err(ScanFault::Syntax));
}

#[test]
fn answers() {
    let result = r#"{"result":{"content":[]},"id":0,"jsonrpc":"2.0"}"#;
    let found = scan(result.as_bytes()).unwrap();
    assert_eq!(found.kind, Kind::Response);
    assert_eq!(of(result, found.result), Some(r#"{"content":[]}"#));
    let error = r#"{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":""}}"#;
    let found = scan(error.as_bytes()).unwrap();
    assert_eq!(found.kind, Kind::ErrorResponse);
    assert_eq!(of(error, found.id), Some("null"));
    let error = r#"{"jsonrpc":"2.0","error":{}}"#;
    assert_eq!(scan(error.as_bytes()).unwrap().id, None);
}

/// JSON-RPC 2.0 §5.1: what is no JSON is -32700, also where its beginning is no message already.
#[test]
fn what_is_no_json_is_that_before_anything_else() {
    for start in [
        r#"{"jsonrpc":"1.0","id":1,"method":"x""#,
        r#"{"id":1,"id":2,"jsonrpc":"2.0","method":"x""#,
        r#"{"ID":1,"jsonrpc":"2.0","method":"x""#,
        r#"{"jsonrpc":"2.0","method":7"#,
    ] {
        assert_eq!(fault(start).kind(), error::Kind::Parse, "{start}");
        assert_eq!(fault(&format!("{start},}}")).kind(), error::Kind::Parse, "{start}");
        assert_eq!(fault(&format!("{start}}}")).kind(), error::Kind::InvalidRequest, "{start}");
    }
}

#[test]
fn what_is_json_but_no_message() {
    for message in [
        "[]",
        "1",
        "\"\"",
        "null",
        "{}",
        r#"{"jsonrpc":"2.0"}"#,
        r#"{"jsonrpc":"2.0","id":1}"#,
        r#"{"jsonrpc":"1.0","id":1,"method":"x"}"#,
        r#"{"jsonrpc":2.0,"id":1,"method":"x"}"#,
        r#"{"id":1,"method":"x"}"#,
        r#"{"jsonrpc":"2.0","id":null,"method":"x"}"#,
        r#"{"jsonrpc":"2.0","id":true,"method":"x"}"#,
        r#"{"jsonrpc":"2.0","id":[1],"method":"x"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":5}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"x","params":"y"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"x","result":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
        r#"{"jsonrpc":"2.0","id":null,"result":{}}"#,
        r#"{"jsonrpc":"2.0","result":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"error":"no"}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":1,"params":{}}"#,
    ] {
        assert_eq!(fault(message), ScanFault::Shape, "{message}");
        assert_eq!(ScanFault::Shape.kind(), crate::error::Kind::InvalidRequest);
    }
}

#[test]
fn two_readers_must_not_differ() {
    use ScanFault::*;
    let call = |params: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{{params}}}}}"#)
    };
    for (params, expected) in [
        (r#""name":"a","name":"b""#, Duplicate),
        (r#""name":1,"name":"b""#, Duplicate),
        (r#""uri":"a","uri":"b""#, Duplicate),
        (r#""name":"a","arguments":{},"arguments":{}"#, Duplicate),
        (r#""_meta":{},"_meta":{}"#, Duplicate),
        (r#""_meta":null,"_meta":{"progressToken":1}"#, Duplicate),
        (r#""_meta":{"progressToken":1,"progressToken":2}"#, Duplicate),
        (r#""progressToken":1,"progressToken":2"#, Duplicate),
        (r#""requestId":1,"requestId":2"#, Duplicate),
        (r#""n\u0061me":"a""#, EscapedKey),
        (r#""_meta":{"progress\u0054oken":1}"#, EscapedKey),
        (r#""name":"a","Name":"b""#, Lookalike),
        (r#""NAME":"b","name":"a""#, Lookalike),
        (r#""name":"a","Arguments":{}"#, Lookalike),
        (r#""name":"a","argumentſ":{}"#, Lookalike),
        (r#""name":"a","\u004eame":"b""#, Lookalike),
    ] {
        assert_eq!(fault(&call(params)), expected, "{params}");
    }
    for params in [
        r#""x":1,"x":2"#,
        r#""a\/b":1,"name":"a""#,
        r#""Name":"b""#,
        r#""name":"a","arguments":{"name":"b","Name":"c","name":"d"}"#,
    ] {
        assert!(scan(call(params).as_bytes()).is_ok(), "{params}");
    }
    for (message, expected) in [
        (r#"{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}"#, Duplicate),
        (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"a"}"#, Duplicate),
        (r#"{"jsonrpc":"2.0","jsonrpc":"2.0","id":2,"method":"a"}"#, Duplicate),
        (r#"{"jsonrpc":"2.0","id":1,"params":{},"params":{},"method":"a"}"#, Duplicate),
        (r#"{"jsonrpc":"2.0","id":1,"m\u0065thod":"a"}"#, EscapedKey),
        (r#"{"jsonrpc":"2.0","id":1,"method":"a","x\n":1}"#, EscapedKey),
        (r#"{"jsonrpc":"2.0","id":1,"method":"a","Method":"b"}"#, Lookalike),
        (r#"{"jsonrpc":"2.0","id":1,"method":"a","paramſ":{}}"#, Lookalike),
    ] {
        assert_eq!(fault(message), expected, "{message}");
    }
}

#[test]
fn what_is_not_json() {
    let good =
        r#"{"jsonrpc":"2.0","id":-1.5e3,"method":"a","params":{"a":[true,false,null,"\n"]}}"#;
    assert!(scan(good.as_bytes()).is_ok());
    for cut in 0..good.len() {
        assert_eq!(fault(&good[..cut]), ScanFault::Syntax, "{}", &good[..cut]);
    }
    for tail in ["x", "{}", ",", "\0"] {
        assert_eq!(fault(&format!("{good}{tail}")), ScanFault::Syntax);
    }
    assert_eq!(fault(&format!("\u{FEFF}{good}")), ScanFault::Syntax);
    let mut invalid = good.as_bytes().to_vec();
    *invalid.iter_mut().find(|byte| **byte == b'a').unwrap() = 0xFF;
    assert_eq!(scan(&invalid), Err(ScanFault::Utf8));
}

#[test]
fn every_value_is_judged_as_serde_json_passes_over_it() {
    let long = "x".repeat(300);
    let strings = [
        r#""\ud83d\ude00""#,
        r#""\ud83d""#,
        r#""\ude00""#,
        r#""\ud83d\n""#,
        r#""\x""#,
        r#""\u00zz""#,
        "\"a\tb\"",
        "\"a\u{7f}b\"",
        "\"\u{0}\"",
        &format!("\"{long}\u{1}\""),
        &format!("\"{long}\\\""),
        &format!("\"{long}é{long}\""),
    ];
    let others = [
        "tru",
        "true",
        "True",
        "nul",
        "nulll",
        "[1,]",
        "[,1]",
        "[1 2]",
        "[]",
        "[ ]",
        "{}",
        "{ }",
        "{,}",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1,}"#,
        r#"{a:1}"#,
        r#"{"a":1]"#,
        "[1}",
        r#"{"a" : 1 , "b":2}"#,
        "[[[]]]",
        "1e400",
        "01",
        "-",
        "\u{b}1",
        "\u{a0}1",
        "/**/1",
        "NaN",
        "Infinity",
        "'a'",
        "",
    ];
    for value in strings.iter().copied().chain(others) {
        let message =
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{"v":{value}}}}}"#);
        let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&message).is_ok();
        assert_eq!(scan(message.as_bytes()).is_ok(), theirs, "{value}");
    }
}

#[test]
fn depth_is_serde_jsons() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        for depth in [120, 125, 126, 127, 128, 1000] {
            let inner = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            for message in [
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"a","x":{inner}}}"#),
                format!(
                    r#"{{"jsonrpc":"2.0","id":1,"method":"a","params":{{"arguments":{inner}}}}}"#
                ),
                format!(
                    r#"{{"jsonrpc":"2.0","id":1,"method":"a","params":{{"_meta":{{"x":{inner}}}}}}}"#
                ),
            ] {
                let theirs = serde_json::from_str::<serde_json::Value>(&message).is_ok();
                let ours = scan(message.as_bytes());
                assert_eq!(ours.is_ok(), theirs, "{depth}");
                if let Err(fault) = ours {
                    assert_eq!(fault, ScanFault::Depth);
                }
            }
        }
    }
}

#[test]
fn what_must_be_kept_is_short() {
    let id = "1".repeat(SCALAR_BYTES_MAX - 2);
    let message = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":"{id}","method":"a"}}"#);
    assert!(scan(message(&id).as_bytes()).is_ok());
    assert_eq!(fault(&message(&format!("{id}1"))), ScanFault::ScalarTooLong);
    let digits = "3".repeat(SCALAR_BYTES_MAX - 1);
    assert_eq!(
        fault(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"a","x":0.{digits}}}"#)),
        ScanFault::ScalarTooLong
    );
}

#[test]
fn batches() {
    let one = br#" {"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    assert!(matches!(shape(one), Ok(Shape::One(found)) if found.kind == Kind::Request));
    assert_eq!(shape(b"{}").err(), Some(ScanFault::Shape));
    assert_eq!(shape(b"").err(), Some(ScanFault::Syntax));
    let body = br#" [ {"a":[1,2]} ,2,"x,]" ] "#;
    let Ok(Shape::Batch(elements)) = shape(body) else { panic!("an array") };
    let texts: Vec<_> = elements.map(|span| span.of(body)).collect();
    assert_eq!(texts, [&br#"{"a":[1,2]}"#[..], b"2", br#""x,]""#]);
    let Ok(Shape::Batch(mut none)) = shape(b"[]") else { panic!("an array") };
    assert_eq!(none.next(), None);
    assert_eq!(none.next(), None);
    assert!(shape(b"[1").is_err());
    assert!(shape(b"[1] 2").is_err());
}
