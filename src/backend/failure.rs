//! Owns: why something at a backend failed, in a form that can be copied and mailed.
//! Never: what a client reads beyond a backend's name and an HTTP status.
//! Next: `bell`, how tasks of a worker wake each other.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::error::{Error, Kind};

/// A failure at a backend; becomes an [`Error`] where its call ends.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its row in the table of errors.
    pub kind: Kind,
    /// Public, behind the backend's name, such as `HTTP 503`; often empty.
    pub note: Cow<'static, str>,
    /// For the log.
    pub cause: Cow<'static, str>,
    /// The backend does not know the session any more.
    pub session_lost: bool,
    /// The status that it answered with; 0 = it did not.
    pub status: u16,
    /// When it wants to be asked again.
    pub retry_after: Option<Duration>,
}

impl Failure {
    pub(super) fn new(kind: Kind, cause: impl Into<Cow<'static, str>>) -> Failure {
        Failure {
            kind,
            note: Cow::Borrowed(""),
            cause: cause.into(),
            session_lost: false,
            status: 0,
            retry_after: None,
        }
    }

    /// The backend is in no plan any more, and nothing was sent.
    pub(super) fn left() -> Failure {
        Failure::new(Kind::Unavailable, "it has left the configuration")
    }

    pub(super) fn note(mut self, note: impl Into<Cow<'static, str>>) -> Failure {
        self.note = note.into();
        self
    }

    /// The same as what it means for a call that was never sent.
    pub(super) fn unsent(mut self) -> Failure {
        if self.kind != Kind::Busy {
            self.kind = Kind::Unavailable;
        }
        self
    }

    /// As the error of a call of the backend `name`.
    pub(super) fn error(&self, name: &str) -> Error {
        let context = match &*self.note {
            "" => name.to_owned(),
            note => format!("{name}: {note}"),
        };
        let error = Error::new(self.kind).context(context);
        let error = error.http(self.status).retry_after(self.retry_after);
        if self.cause.is_empty() { error } else { error.cause(&self.cause) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.text())?;
        if !self.note.is_empty() {
            write!(f, ": {}", self.note)?;
        }
        if !self.cause.is_empty() {
            write!(f, " ({})", self.cause)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_reads_the_name_and_the_note_and_the_log_the_cause() {
        let failure = Failure::new(Kind::Unavailable, "connect: refused").note("HTTP 503");
        let error = failure.error("files");
        assert_eq!(error.public(), "Backend unavailable: files: HTTP 503");
        assert_eq!(error.to_string(), "Backend unavailable: files: HTTP 503 (connect: refused)");
        assert_eq!(Failure::new(Kind::Lost, "").error("a").public(), "Backend connection lost: a");
    }
}
