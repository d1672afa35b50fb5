//! Owns: what a child is started with: its environment, its program.
//! Never: starting it.
//! Next: `address`.

use std::path::Path;

use crate::control::config::BackendTable;
use crate::control::setting::Inherit;

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

/// This very executable, if the command is exactly its name: so a file can name the proxy's own
/// `demo-server` wherever it was built. A program that merely embeds the library is not meant.
pub(super) fn own_executable(command: &str) -> Option<String> {
    let name = env!("CARGO_PKG_NAME");
    let own = std::env::current_exe().ok()?;
    (command == name && own.file_name()? == name && own.exists())
        .then(|| own.to_str().map(str::to_owned))
        .flatten()
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
