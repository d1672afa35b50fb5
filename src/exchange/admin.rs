//! Owns: the way of a request to `/admin` to the control plane and back.
//! Never: who may make it (`door`); what there is under `/admin` (`control::admin`).
//! Next: `answer`, how all of them end.

use std::io;

use super::{Ask, door};
use crate::error::{Error, Kind};
use crate::http::{BodyFault, Connection, Method as HttpMethod, RequestHead};
use crate::limits;
use crate::mcp::session::SessionRecord;
use crate::rt;
use crate::telemetry::desk::{Page, Reply, Wanted};
use crate::world::World;

/// What stands behind `/admin/` in the path of a request; `None` = it is for somebody else.
pub(super) fn path(head: &RequestHead) -> Option<&str> {
    let rest = head.path().strip_prefix("/admin")?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
}

/// Serves a request to `/admin`; `refusal` = it is one that nobody may make.
pub(super) async fn serve(
    world: &World,
    connection: &mut Connection,
    ask: &mut Ask,
    head: &RequestHead,
    path: &str,
    refusal: Option<Error>,
) -> io::Result<()> {
    let refusal = match refusal {
        Some(error) => Some(error),
        None => door::admit_admin(world, ask, head).await.err(),
    };
    let (page, more) = match &refusal {
        Some(error) => (refused(error), door::challenge(world, ask, head, error)),
        None => (page(world, connection, ask, path).await?, ask.cors.clone()),
    };
    let lines = format!("{}{more}", page.lines);
    connection.answer(page.status, &lines, &page.body).await
}

/// Why nothing is done.
fn refused(error: &Error) -> Page {
    let status = error.kind().status();
    let word = match status {
        401 => "unauthorized",
        403 => "forbidden",
        _ => "busy",
    };
    let mut page = Page::error(status, word, &error.public());
    if error.kind() == Kind::Capacity {
        page.lines.push_str("Retry-After: 1\r\n");
    }
    page
}

async fn page(
    world: &World,
    connection: &mut Connection,
    ask: &Ask,
    path: &str,
) -> io::Result<Page> {
    let method = match ask.method {
        // The connection leaves the body out (RFC 9110 §9.3.2).
        HttpMethod::Get | HttpMethod::Head => "GET",
        HttpMethod::Post => "POST",
        HttpMethod::Delete => "DELETE",
        _ => "",
    };
    let body = match ask.method {
        HttpMethod::Post => connection.body(limits::ADMIN_BODY_BYTES_MAX).await,
        _ => Ok(Vec::new()),
    };
    let body = match body {
        Ok(body) => {
            ask.facts.body(body.len());
            body
        }
        Err(BodyFault::Gone) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Err(fault) => {
            let status = fault.status().unwrap_or(400);
            return Ok(Page::error(status, "bad_body", &fault.to_string()));
        }
    };
    let wanted = Wanted::Page { method, path: path.to_owned(), body };
    Ok(match world.ask_control(wanted).await {
        Ok(Reply::Page(page)) => page,
        Ok(Reply::Sessions) => sessions(world).await,
        Ok(Reply::EndSession(id)) => end_session(world, &id).await,
        Ok(Reply::Said(_) | Reply::Declined(_) | Reply::NoTool) => {
            Page::error(500, "internal", "the control plane answered something else")
        }
        Err(error) => {
            let mut page = Page::error(503, "busy", &error.public());
            page.lines.push_str("Retry-After: 1\r\n");
            page
        }
    })
}

async fn sessions(world: &World) -> Page {
    let now = rt::time::now();
    let mut records = world.all_sessions().await;
    records.sort_by_key(|record| std::cmp::Reverse(record.age(now)));
    let row = |record: &SessionRecord| {
        serde_json::json!({
            "id": record.id.public(),
            "principal": record.principal.as_deref(),
            "era": "legacy",
            "age_seconds": record.age(now).as_secs(),
            "idle_seconds": record.idle(now).as_secs(),
        })
    };
    let rows: Vec<_> = records.iter().map(|record| row(record)).collect();
    Page::json(200, serde_json::Value::from(rows).to_string())
}

async fn end_session(world: &World, public: &str) -> Page {
    let records = world.all_sessions().await;
    match records.iter().find(|record| record.id.public() == public) {
        Some(record) => {
            world.delete_session(record);
            Page::json(200, "{\"ended\":true}")
        }
        None => Page::error(404, "not_found", "there is no such session"),
    }
}
