//! Owns: the way from `[auth]`, `[security]` and `[proxy.listen.tls]` to what the plan says of them.
//! Never: what a token means (`auth`).
//! Next: `rules`.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::compile::{Compiler, Url};
use super::config::{AuthTable, NamedBackend, RoleTable, ScopedTokenTable, read_bounded};
use super::rules::patterns;
use super::setting::{AuthKind, Glob, IsolationKey, Secret};
use crate::auth::bearer::{ADMIN, Tokens};
use crate::auth::jwt::{Jwt, Mapping};
use crate::auth::keys::Shelf;
use crate::auth::policy::{Rights, Role};
use crate::auth::{Access, Caller, Scheme};
use crate::http::tls::{self, TrustFault};
use crate::limits;
use crate::plan::PublicUrl;

/// A token that is shorter can be guessed.
const TOKEN_CHARS_MIN: usize = 16;

impl Compiler<'_> {
    /// `None` after a fault.
    pub(super) fn access(&mut self) -> Option<Option<Box<Access>>> {
        let config = self.config;
        let scheme = match &config.auth {
            None => None,
            Some(table) => Some(self.scheme(table)?),
        };
        let admin = match &config.security.admin_token {
            None => None,
            Some(token) => {
                let path = "security.admin_token";
                self.token(path, token);
                let scoped = config.auth.iter().flat_map(|auth| &auth.scoped_tokens);
                if scoped.into_iter().any(|scoped| scoped.token.expose() == token.expose()) {
                    let message = "this token is one of auth.scoped_tokens, whose limits it would \
                                   lift, accepted: another one";
                    self.fault(path, message);
                }
                let caller = Caller { principal: ADMIN.into(), rights: None, admin: true };
                Some(self.tokens(path, vec![(token.expose(), caller)])?)
            }
        };
        let is_set = scheme.is_some() || admin.is_some();
        Some(is_set.then(|| Box::new(Access { scheme, admin })))
    }

    fn scheme(&mut self, table: &AuthTable) -> Option<Scheme> {
        if self.report.blames("auth.type") {
            return None;
        }
        self.refuse_foreign("auth", table);
        match table.r#type {
            AuthKind::Bearer => self.bearer(table).map(|tokens| Scheme::Bearer(Box::new(tokens))),
            AuthKind::Jwt => self.jwt(table).map(|jwt| Scheme::Jwt(Box::new(jwt))),
        }
    }

    fn bearer(&mut self, table: &AuthTable) -> Option<Tokens> {
        let mut tokens: Vec<(&str, Caller)> = Vec::new();
        let mut seen = HashSet::new();
        let mut names = HashSet::new();
        for (index, token) in table.tokens.iter().enumerate() {
            let path = format!("auth.tokens[{index}]");
            self.token(&path, token);
            if !seen.insert(token.expose()) {
                self.fault(&path, "this token is there twice, accepted: once");
            }
            let principal = format!("tokens[{index}]").into();
            tokens.push((token.expose(), Caller { principal, rights: None, admin: false }));
        }
        for (index, scoped) in table.scoped_tokens.iter().enumerate() {
            let path = format!("auth.scoped_tokens[{index}]");
            self.token(&format!("{path}.token"), &scoped.token);
            if !seen.insert(scoped.token.expose()) {
                self.fault(&format!("{path}.token"), "this token is there twice, accepted: once");
            }
            let name = &scoped.name;
            self.text(&format!("{path}.name"), name);
            if !names.insert(name.as_str()) {
                self.fault(&format!("{path}.name"), format!("{name:?} is there twice"));
            } else if name == ADMIN || name.starts_with("tokens[") {
                let message = format!("{name:?} is what another token is called, accepted: others");
                self.fault(&format!("{path}.name"), message);
            }
            let rights = Rights::of_one(role_of_token(scoped), index as u64);
            let principal = name.as_str().into();
            tokens.push((scoped.token.expose(), Caller { principal, rights, admin: false }));
        }
        if tokens.is_empty() {
            self.fault("auth", "nobody could call: neither tokens nor scoped_tokens are there");
        }
        self.tokens("auth", tokens)
    }

    fn tokens(&mut self, path: &str, tokens: Vec<(&str, Caller)>) -> Option<Tokens> {
        match Tokens::new(tokens) {
            Ok(tokens) => Some(tokens),
            Err(_) => {
                self.fault(path, "this machine gives no random bytes");
                None
            }
        }
    }

    /// A token must be fit for a header, and hard to guess.
    fn token(&mut self, path: &str, token: &Secret) {
        let text = token.expose();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            self.fault(path, "accepted: visible ASCII characters, without blanks");
        } else if text.len() > limits::TOKEN_BYTES_MAX {
            let message = format!("accepted: {} characters at most", limits::TOKEN_BYTES_MAX);
            self.fault(path, message);
        } else if text.len() < TOKEN_CHARS_MIN {
            let message = format!("shorter than {TOKEN_CHARS_MIN} characters: it can be guessed");
            self.warning(path, message);
        }
    }

    fn jwt(&mut self, table: &AuthTable) -> Option<Jwt> {
        let issuer = self.said("auth.issuer", table.issuer.as_deref());
        let audience = self.said("auth.audience", table.audience.as_deref());
        let uri = self.said("auth.jwks_uri", table.jwks_uri.as_deref());
        if let Some(uri) = &uri {
            self.jwks_uri(uri);
        }
        if table.algorithms.is_empty() {
            self.fault("auth.algorithms", "found an empty list, accepted: at least one");
        }
        for (index, scope) in table.required_scopes.iter().enumerate() {
            // RFC 6749 §3.3.
            let legal = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\');
            if scope.is_empty() || !scope.bytes().all(legal) {
                let message = "accepted: visible ASCII characters without blanks, \" and \\";
                self.fault(&format!("auth.required_scopes[{index}]"), message);
            }
        }
        let mapping = self.mapping(table);
        let roles = table.roles.iter().map(role).map(Arc::new).collect();
        Some(Jwt {
            issuer: issuer?,
            audience: audience?,
            algorithms: table.algorithms.iter().map(|algorithm| algorithm.0).collect(),
            leeway: table.leeway_seconds.0,
            required_scopes: table.required_scopes.clone(),
            roles,
            mapping,
            shelf: Arc::new(Shelf::new(&uri?)),
        })
    }

    /// The value of a key that must be there and say something.
    fn said(&mut self, path: &str, value: Option<&str>) -> Option<String> {
        match value {
            None => {
                self.fault(path, "missing, and there is no default for type = \"jwt\"");
                None
            }
            Some(text) => {
                self.text(path, text);
                Some(text.to_owned())
            }
        }
    }

    fn jwks_uri(&mut self, uri: &str) {
        match Url::parse(uri) {
            Ok(url) => {
                let local = url.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
                if !url.https && !local && url.host != "localhost" {
                    let message = "http: whoever is on the way can replace the keys, and call as \
                                   anybody";
                    self.warning("auth.jwks_uri", message);
                }
            }
            Err(reason) => {
                self.fault("auth.jwks_uri", format!("{reason}, accepted: http[s]://host/path"));
            }
        }
    }

    fn mapping(&mut self, table: &AuthTable) -> Option<Mapping> {
        let mut names: Vec<&str> = Vec::new();
        for (index, role) in table.roles.iter().enumerate() {
            let path = format!("auth.roles[{index}].name");
            self.text(&path, &role.name);
            if names.contains(&role.name.as_str()) {
                self.fault(&path, format!("{:?} is there twice", role.name));
            }
            names.push(&role.name);
        }
        if names.len() > limits::ROLES_MAX {
            let message = format!("found {}, accepted: {} at most", names.len(), limits::ROLES_MAX);
            self.fault("auth.roles", message);
        }
        let Some(mapping) = &table.role_mapping else {
            if !names.is_empty() {
                self.fault("auth.roles", "nobody would have one: role_mapping is not there");
            }
            return None;
        };
        self.text("auth.role_mapping.claim", &mapping.claim);
        let mut roles = std::collections::HashMap::new();
        for (word, role) in &mapping.mapping {
            match names.iter().position(|name| name == role) {
                Some(index) => drop(roles.insert(word.clone(), index)),
                None => {
                    let path = super::setting::join("auth.role_mapping.mapping", word);
                    let known = names.join(", ");
                    self.fault(&path, format!("found {role:?}, accepted: a role ({known})"));
                }
            }
        }
        for (index, name) in names.iter().enumerate() {
            if !mapping.mapping.values().any(|role| role == name) {
                let message = format!("nothing is mapped to {name:?}: nobody will have it");
                self.warning(&format!("auth.roles[{index}].name"), message);
            }
        }
        Some(Mapping { claim: mapping.claim.clone(), roles, default_deny: mapping.default_deny })
    }

    /// `forward_auth`.
    pub(super) fn forward_auth(&mut self, backend: &NamedBackend) -> bool {
        let table = &backend.table;
        if !table.forward_auth {
            return false;
        }
        let path = format!("{}.forward_auth", backend.path);
        if table.isolation == Some(IsolationKey::Shared) {
            self.fault(
                &path,
                "with isolation = \"shared\" one client's token would be used for all",
            );
        }
        let own = table.headers.keys().any(|name| name.eq_ignore_ascii_case("authorization"));
        if table.bearer_token.is_some() || own {
            self.fault(&path, "the proxy's own Authorization is set too, accepted: one of them");
        }
        self.warning(
            &path,
            "the server gets tokens that open this proxy; MCP forbids that unless both are yours",
        );
        true
    }

    /// `proxy.listen.public_url`.
    pub(super) fn public_url(&mut self) -> Option<PublicUrl> {
        let path = "proxy.listen.public_url";
        let text = self.config.proxy.listen.public_url.as_deref()?;
        let url = match Url::parse(text) {
            Ok(url) if !url.target.contains('?') => url,
            Ok(_) => {
                self.fault(path, "found a query, accepted: http[s]://host[:port][/path]");
                return None;
            }
            Err(reason) => {
                self.fault(path, format!("{reason}, accepted: http[s]://host[:port][/path]"));
                return None;
            }
        };
        let scheme = if url.https { "https" } else { "http" };
        let prefix = url.target.trim_end_matches('/');
        // Who writes the whole address means the same.
        let prefix = prefix.strip_suffix("/mcp").unwrap_or(prefix);
        Some(PublicUrl {
            origin: format!("{scheme}://{}", url.authority()),
            path: prefix.to_owned(),
        })
    }

    /// `[proxy.listen.tls]`; `None` after a fault. Blocks: it reads the files.
    pub(super) fn listen_tls(&mut self) -> Option<Option<Arc<rustls::ServerConfig>>> {
        let config = self.config;
        let Some(table) = &config.proxy.listen.tls else { return Some(None) };
        let mut read = |key: &str, file: &str| {
            let file = config.folder.join(file);
            read_bounded(&file, limits::SECRET_BYTES_MAX)
                .map_err(|message| {
                    let message = format!("the file {} {message}", file.display());
                    self.fault(&format!("proxy.listen.tls.{key}"), message);
                })
                .ok()
        };
        let (cert, key) = (read("cert", &table.cert), read("key", &table.key));
        let ca = match &table.client_ca {
            None => None,
            Some(file) => Some(read("client_ca", file)?),
        };
        match tls::server_config(&cert?, &key?, ca.as_deref()) {
            Ok(server) => Some(Some(server)),
            Err(fault) => {
                let key = if matches!(fault, TrustFault::Ca(_)) { "client_ca" } else { "cert" };
                self.fault(&format!("proxy.listen.tls.{key}"), fault.to_string());
                None
            }
        }
    }
}

fn list(globs: &Option<Vec<Glob>>) -> Option<crate::middleware::pattern::Patterns> {
    globs.as_deref().map(patterns)
}

fn role(table: &RoleTable) -> Role {
    Role {
        name: table.name.clone(),
        allow_tools: list(&table.allow_tools),
        deny_tools: patterns(&table.deny_tools),
        allow_resources: list(&table.allow_resources),
        allow_prompts: list(&table.allow_prompts),
        admin: table.admin,
    }
}

fn role_of_token(table: &ScopedTokenTable) -> Role {
    Role {
        name: table.name.clone(),
        allow_tools: list(&table.allow_tools),
        deny_tools: patterns(&table.deny_tools),
        allow_resources: list(&table.allow_resources),
        allow_prompts: list(&table.allow_prompts),
        admin: false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::ProxyConfig;

    /// Faults, or else warnings, one a line.
    fn said(text: &str) -> String {
        match ProxyConfig::parse(&format!("[proxy]\nname='p'\n{text}\n")) {
            Err(report) => report.to_string(),
            Ok(config) => {
                let all = config.warnings();
                let warnings = all.iter().filter(|warning| warning.path != "backends");
                warnings.map(ToString::to_string).collect::<Vec<_>>().join("\n")
            }
        }
    }

    const JWT: &str = "[auth]\ntype='jwt'\nissuer='https://i'\naudience='a'\n\
                       jwks_uri='https://i/keys'\n";

    #[test]
    fn what_is_accepted() {
        for text in [
            "[auth]\ntype='bearer'\ntokens=['0123456789abcdef']",
            "[auth]\ntype='bearer'\n[[auth.scoped_tokens]]\ntoken='0123456789abcdef'\nname='n'\n\
             allow_tools=['a*']\nallow_prompts=[]",
            JWT,
            &format!(
                "{JWT}algorithms=['ES256','EdDSA']\nleeway_seconds=5\nrequired_scopes=['a']\n\
                 [[auth.roles]]\nname='r'\nadmin=true\n[auth.role_mapping]\nclaim='c'\n\
                 mapping={{x='r'}}\ndefault_deny=false"
            ),
            "[security]\nadmin_token='0123456789abcdef'\nmax_request_bytes=2048",
            "[proxy.listen]\npublic_url='https://h/x/mcp'",
        ] {
            assert_eq!(said(text), "", "{text}");
        }
    }

    #[test]
    fn faults_and_warnings_have_their_place() {
        let jwt = |more: &str| format!("{JWT}{more}");
        let forward = |more: &str| {
            format!(
                "[[backends]]\nname='a'\ntransport='http'\nurl='https://h'\nforward_auth=true\n{more}"
            )
        };
        for (text, expected) in [
            ("[auth]\ntype='basic'", "auth.type: found \"basic\", accepted: \"bearer\" or \"jwt\""),
            ("[auth]\ntokens=['0123456789abcdef']", "auth.type: missing"),
            ("[auth]\ntype='bearer'", "auth: nobody could call"),
            ("[auth]\ntype='bearer'\ntokens=['a b']", "auth.tokens[0]: accepted: visible ASCII"),
            ("[auth]\ntype='bearer'\ntokens=['short']", "auth.tokens[0]: shorter than 16"),
            (
                "[auth]\ntype='bearer'\ntokens=['0123456789abcdef','0123456789abcdef']",
                "auth.tokens[1]: this token is there twice",
            ),
            (
                "[auth]\ntype='bearer'\ntokens=['0123456789abcdef']\nissuer='x'",
                "auth.issuer: not accepted with type = \"bearer\"",
            ),
            (
                "[auth]\ntype='bearer'\n[[auth.scoped_tokens]]\ntoken='0123456789abcdef'",
                "auth.scoped_tokens[0].name: missing",
            ),
            (
                "[auth]\ntype='bearer'\n[[auth.scoped_tokens]]\ntoken='0123456789abcdef'\n\
                 name='admin_token'",
                "auth.scoped_tokens[0].name: \"admin_token\" is what another token is called",
            ),
            ("[auth]\ntype='jwt'\nissuer='i'\naudience='a'", "auth.jwks_uri: missing"),
            (&jwt("tokens=['x']"), "auth.tokens: not accepted with type = \"jwt\""),
            (&jwt("algorithms=['HS256']"), "auth.algorithms[0]: found \"HS256\", accepted: one of"),
            (&jwt("algorithms=['none']"), "auth.algorithms[0]: found \"none\""),
            (&jwt("algorithms=[]"), "auth.algorithms: found an empty list"),
            (&jwt("required_scopes=['a b']"), "auth.required_scopes[0]: accepted: visible"),
            (&jwt("[[auth.roles]]\nname='r'"), "auth.roles: nobody would have one"),
            (
                &jwt("[auth.role_mapping]\nclaim='c'\nmapping={x='r'}"),
                "auth.role_mapping.mapping.x: found \"r\", accepted: a role",
            ),
            (
                &jwt("[[auth.roles]]\nname='r'\n[auth.role_mapping]\nclaim='c'\nmapping={}"),
                "auth.roles[0].name: nothing is mapped to \"r\"",
            ),
            (&JWT.replace("https://i/keys", "ftp://i/keys"), "auth.jwks_uri: found the scheme ftp"),
            (&JWT.replace("https://i/keys", "http://i/keys"), "auth.jwks_uri: http: whoever"),
            ("[security]\nadmin_token=''", "security.admin_token: accepted: visible ASCII"),
            (
                "[auth]\ntype='bearer'\n[[auth.scoped_tokens]]\ntoken='0123456789abcdef'\n\
                 name='n'\n[security]\nadmin_token='0123456789abcdef'",
                "security.admin_token: this token is one of auth.scoped_tokens",
            ),
            ("[security]\nmax_request_bytes=1", "security.max_request_bytes: found 1, accepted"),
            (&forward(""), "backends[0].forward_auth: the server gets tokens"),
            (&forward("isolation='shared'"), "backends[0].forward_auth: with isolation"),
            (&forward("bearer_token='t'"), "backends[0].forward_auth: the proxy's own"),
            ("[proxy.listen]\npublic_url='h'", "proxy.listen.public_url: found no scheme"),
            ("[proxy.listen]\npublic_url='http://h/?x'", "proxy.listen.public_url: found a query"),
            (
                "[proxy.listen.tls]\ncert='/no/such'\nkey='/no/such'",
                "proxy.listen.tls.cert: the file /no/such cannot be read",
            ),
            ("[proxy.listen.tls]\ncert='x'", "proxy.listen.tls.key: missing"),
            ("[proxy.listen]\nhost='0.0.0.0'", "there is no authentication ([auth])"),
        ] {
            let found = said(text);
            assert!(found.contains(expected), "{text}\n{found}");
        }
        let open =
            "[proxy.listen]\nhost='0.0.0.0'\n[auth]\ntype='bearer'\ntokens=['0123456789abcdef']";
        assert_eq!(said(open), "");
        // No fault or warning shows a token.
        for text in ["tokens=['s3cr et']", "tokens=['s3cret']", "tokens='s3cret'"] {
            let found = said(&format!("[auth]\ntype='bearer'\n{text}"));
            assert!(!found.is_empty() && !found.contains("s3cr"), "{found}");
        }
    }
}
