//! Owns: the tool `rounds` of the request era, whose call needs input, once or several times.
//! Never: framing; anything kept from one request to the next.

use serde_json::{Value, json};

use crate::server::{Channel, Reply, Stub, error, result, text_result};

/// Answers with what `arguments.rounds` wants in this round: a map of requests; `null` = to be asked
/// again. Behind the last one it answers with the request, word for word. Each round says how far it
/// is, and the state says which one is next; with `forever` there is no last one. States begin with
/// `state`; with `stateless` there are none, and so there is one round. Questions are `pad` bytes longer.
pub(crate) fn call(
    stub: &Stub,
    id: &str,
    params: &Value,
    body: &[u8],
    channel: &dyn Channel,
) -> Reply {
    let arguments = &params["arguments"];
    let prefix = arguments["state"].as_str().unwrap_or("round\"/ ");
    let state = params["requestState"].as_str().map(|state| state.strip_prefix(prefix));
    let stateless = arguments["stateless"] == true;
    let at: usize = match state {
        None => usize::from(stateless && params["inputResponses"].is_object()),
        Some(state) => state.expect("a state of ours").parse().expect("a number"),
    };
    stub.note(&format!("round {at} {id} given {}", params["inputResponses"]));
    let token = &params["_meta"]["progressToken"];
    if !token.is_null() {
        let _ = channel.say(&format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token},"progress":{at}}}}}"#
        ));
    }
    let rounds = arguments["rounds"].as_array().expect("rounds");
    let last = at.checked_sub(1).and_then(|at| rounds.get(at));
    for (key, _) in last.and_then(Value::as_object).into_iter().flatten() {
        if !params["inputResponses"][key].is_object() {
            return Reply::Answer(error(id, -32602, &format!("{key} is missing")));
        }
    }
    let wanted = match arguments["forever"] == true {
        true => rounds.first(),
        false => rounds.get(at),
    };
    let Some(wanted) = wanted else {
        let said = text_result(&String::from_utf8_lossy(body));
        let complete = said.replacen('{', r#"{"resultType":"complete","#, 1);
        return Reply::Answer(result(id, &complete));
    };
    let mut asks = json!({ "resultType": "input_required" });
    if let Some(bytes) = arguments["pad"].as_u64() {
        asks["_meta"] = json!({ "pad": "x".repeat(bytes as usize) });
    }
    if !stateless {
        asks["requestState"] = format!("{prefix}{}", at + 1).into();
    }
    if !wanted.is_null() {
        asks["inputRequests"] = wanted.clone();
    }
    Reply::Answer(result(id, &asks.to_string()))
}
