//! Owns: what a child is started with: its environment, its program.
//! Never: starting it.
//! Next: `address`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::control::config::BackendTable;
use crate::control::setting::Inherit;

/// How a configuration names the proxy itself.
const COMMAND: &str = env!("CARGO_PKG_NAME");

/// The whole environment of a child, in the order of names. Inherited variables that are not
/// UTF-8 are left out.
pub(super) fn environment(
    table: &BackendTable,
    own: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> Vec<(String, String)> {
    let matches = |name: &str| match &table.inherit_env {
        Inherit::All => true,
        Inherit::Names(names) => names.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        }),
    };
    let mut env: std::collections::BTreeMap<String, String> = own
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| matches(name))
        .collect();
    env.extend(table.env.iter().map(|(name, value)| (name.clone(), value.0.expose().to_owned())));
    env.into_iter().collect()
}

/// The program that "mcp-proxy" means, where [`set_own_executable`] has said it.
static OWN_EXECUTABLE: OnceLock<PathBuf> = OnceLock::new();

/// Makes the command "mcp-proxy" in configurations of this process mean the program at `path`, which
/// serves `demo-server`. The first one holds.
pub(in crate::control) fn set_own_executable(path: PathBuf) {
    let _ = OWN_EXECUTABLE.set(path);
}

/// This very executable, if the command is exactly "mcp-proxy": so a file can name the proxy's own
/// `demo-server` wherever that lies and whatever it is called there. A program that merely embeds the
/// library is not meant, whatever it is called.
pub(super) fn own_executable(command: &str) -> Option<String> {
    let own = OWN_EXECUTABLE.get().filter(|own| command == COMMAND && own.exists())?;
    own.to_str().map(str::to_owned)
}

/// Whether a program can be found now; it may well appear later.
pub(super) fn is_found(command: &str, cwd: Option<&Path>, env: &[(String, String)]) -> bool {
    if command.contains('/') {
        return cwd.unwrap_or(Path::new("")).join(command).is_file();
    }
    let path = env.iter().find(|(name, _)| name == "PATH");
    path.is_none_or(|(_, path)| {
        std::env::split_paths(path).any(|folder| folder.join(command).is_file())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This process has not said that it is the proxy.
    #[test]
    fn who_embeds_the_library_is_not_meant() {
        assert_eq!(own_executable(COMMAND), None);
    }
}
