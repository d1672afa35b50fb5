//! Owns: who calls and what he may see: tokens, principals, rights.
//! Never: HTTP answers (`exchange`); fetching keys (`control::jwks`).
//! Next: `bearer`, tokens that are written in the configuration.
//!
//! RFC 6750 (Bearer), RFC 8725 (JWT best practice), MCP 2025-11-25, Basic, Authorization.

pub mod bearer;
pub mod desk;
pub mod jwt;
pub mod keys;
pub mod policy;
mod strict;

use std::sync::Arc;

use bearer::Tokens;
use desk::Desk;
use jwt::Jwt;
use policy::Rights;

/// Who calls, as far as his token says.
#[derive(Debug)]
pub struct Caller {
    /// Whose sessions are his: equal for all tokens of one party.
    pub principal: Arc<str>,
    /// What he may see; `None` = everything.
    pub rights: Option<Rights>,
    /// Whether he may use /admin and the proxy's own tools.
    pub admin: bool,
}

/// How callers prove who they are.
#[derive(Debug)]
pub enum Scheme {
    /// `type = "bearer"`
    Bearer(Box<Tokens>),
    /// `type = "jwt"`
    Jwt(Box<Jwt>),
}

/// `[auth]` and `security.admin_token`; there is none of it if neither is set.
#[derive(Debug)]
pub struct Access {
    /// `[auth]`; `None` = everybody may call.
    pub scheme: Option<Scheme>,
    /// `security.admin_token`.
    pub admin: Option<Tokens>,
}

/// Why a caller is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// He shows no token.
    NoToken,
    /// His token is worth nothing; the reason is for the log.
    BadToken(&'static str),
    /// His token is good, but not for this.
    Scope,
    /// Too many tokens are being verified.
    Busy,
}

impl Access {
    /// Whether a caller has to show a token.
    pub fn is_closed(&self) -> bool {
        self.scheme.is_some()
    }

    /// Who shows this token, as far as that is known without work; `None` = see
    /// [`Access::verify`].
    pub fn known(&self, desk: &Desk, token: &[u8]) -> Option<Arc<Caller>> {
        if let Some(caller) = self.admin.as_ref().and_then(|admin| admin.find(token)) {
            return Some(caller);
        }
        match self.scheme.as_ref()? {
            Scheme::Bearer(tokens) => tokens.find(token),
            Scheme::Jwt(jwt) => desk.known(jwt, token),
        }
    }

    /// Who shows a token that is not known; `Ok(None)` = a stranger, where strangers may call.
    ///
    /// May wait for a helper thread, and for keys of the issuer. A drop leaves nothing behind.
    ///
    /// # Errors
    /// He may not call.
    pub async fn verify(&self, desk: &Desk, token: &[u8]) -> Result<Option<Arc<Caller>>, Refused> {
        match &self.scheme {
            None => Ok(None),
            Some(Scheme::Bearer(_)) => Err(Refused::BadToken("not one of the tokens")),
            Some(Scheme::Jwt(jwt)) => desk.verify(jwt, token).await.map(Some),
        }
    }

    /// The scopes that every token needs, for a challenge.
    pub fn scopes(&self) -> &[String] {
        match &self.scheme {
            Some(Scheme::Jwt(jwt)) => &jwt.required_scopes,
            _ => &[],
        }
    }

    /// The scopes that a token may have here, for the metadata.
    pub fn scopes_known(&self) -> Vec<String> {
        let mut scopes = self.scopes().to_vec();
        if let Some(Scheme::Jwt(jwt)) = &self.scheme
            && let Some(mapping) = &jwt.mapping
            && matches!(mapping.claim.as_str(), "scope" | "scp")
        {
            let mut mapped: Vec<&String> = mapping.roles.keys().collect();
            mapped.sort();
            mapped.retain(|scope| !scopes.contains(scope));
            scopes.extend(mapped.into_iter().cloned());
        }
        scopes
    }

    /// The issuer of the tokens, for the metadata.
    pub fn issuer(&self) -> Option<&str> {
        match &self.scheme {
            Some(Scheme::Jwt(jwt)) => Some(&jwt.issuer),
            _ => None,
        }
    }
}
