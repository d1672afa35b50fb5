//! Owns: what is opened, left alone, and closed on a word: sessions, connections, GET streams.
//! Never: a figure; the parent looks at the memory of who is on the other end.

use std::io::{self, BufRead};
use std::net::TcpStream;

use crate::Result;
use crate::job::{Idle, Job, Place, Word};
use crate::request::{self, Template};
use crate::wire::Line;

/// Opens as many as the job has connections, says `open`, waits for a line on stdin, closes them,
/// says `left`.
pub(crate) fn run(job: &Job, what: Idle) -> Result<()> {
    let mut held = Held { sessions: Vec::new(), streams: Vec::new() };
    let mut line = Line::new(job.place.addr);
    let template = Template::new(job, &job.calls[0], 0);
    match what {
        Idle::Sessions => {
            for number in 0..job.connections {
                let session = greet(&mut line, &job.place)?;
                call(&mut line, &template, number, &session)?;
                held.sessions.push(session);
            }
        }
        Idle::Connections => {
            held.sessions.push(greet(&mut line, &job.place)?);
            for number in 0..job.connections {
                let mut line = Line::new(job.place.addr);
                call(&mut line, &template, number, &held.sessions[0])?;
                let stream = line.into_stream();
                held.streams.push(stream.ok_or("the server does not keep connections")?);
            }
        }
        Idle::Streams => {
            for number in 0..job.connections {
                let session = greet(&mut line, &job.place)?;
                call(&mut line, &template, number, &session)?;
                let (status, stream) =
                    Line::new(job.place.addr).open(&request::bare("GET", &job.place, &session))?;
                if status != 200 {
                    return Err(format!("GET is answered with {status}").into());
                }
                held.streams.push(stream);
                held.sessions.push(session);
            }
        }
    }
    drop(line);
    Word::Open.say()?;
    io::stdin().lock().read_line(&mut String::new())?;
    held.leave(&job.place)?;
    Word::Left.say()?;
    Ok(())
}

struct Held {
    sessions: Vec<String>,
    streams: Vec<TcpStream>,
}

impl Held {
    fn leave(self, place: &Place) -> Result<()> {
        drop(self.streams);
        let mut line = Line::new(place.addr);
        for session in &self.sessions {
            let answer = line.ask(&request::bare("DELETE", place, session))?;
            // 405: a server that does not let its clients end sessions.
            if !matches!(answer.status, 200 | 202 | 204 | 405) {
                return Err(format!("DELETE is answered with {}", answer.status).into());
            }
        }
        Ok(())
    }
}

/// A session of its own.
fn greet(line: &mut Line, place: &Place) -> Result<String> {
    let answer = line.ask(&request::whole(place, None, request::INITIALIZE))?;
    let (status, body) = (answer.status, answer.body);
    let session = answer.session.ok_or_else(|| {
        format!("initialize is answered with {status}: {}", String::from_utf8_lossy(&body))
    })?;
    line.ask(&request::whole(place, Some(&session), request::INITIALIZED))?;
    Ok(session)
}

/// One call, so that what is held has been in use.
fn call(line: &mut Line, template: &Template, number: usize, session: &str) -> Result<()> {
    let tag = request::tag(number, 1);
    let mut bytes = Vec::new();
    template.write(Some(session), &tag, &mut bytes);
    let answer = line.ask(&bytes)?;
    Ok(template.judge(&tag, &answer).map_err(|(_, text)| text)?)
}
