//! The files: where they are, and whose they are by what they hold.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A protocol with vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Uam,
    Voltchat,
    Paracord,
    /// One that this version does not speak.
    Other(&'static str),
}

/// One file, read.
pub struct Document {
    pub name: String,
    pub json: Value,
}

/// Groups of a VoltChat file, each a list of cases.
pub const VOLTCHAT_GROUPS: [&str; 13] = [
    "token_generate",
    "token_verify",
    "request_auth",
    "host",
    "url",
    "allowlist",
    "trim",
    "cut",
    "bounded_integer",
    "ids",
    "relay_types",
    "captured",
    "http",
];

/// Kinds of vectors of a Paracord file.
pub const PARACORD_KINDS: [&str; 8] = [
    "key",
    "envelope_signature",
    "envelope_verify",
    "transport_signature",
    "transport_verify",
    "body_normal_form",
    "signed_path_from_url",
    "identity_parse",
];

/// The files of a protocol, in order of their names. A file of no protocol we know fails the test.
pub fn of(protocol: Protocol) -> Vec<Document> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut folders = vec![own];
    if let Some(extra) = std::env::var_os("DRAWBRIDGE_EXTRA_VECTORS") {
        folders.push(PathBuf::from(extra));
    }
    folders
        .iter()
        .flat_map(|folder| in_folder(folder))
        .map(|path| read(&path))
        .filter(|document| match protocol_of(&document.json) {
            Some(found) => found == protocol,
            None => panic!("{}: not a file of vectors that is known", document.name),
        })
        .collect()
}

fn in_folder(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("the vectors in {} cannot be listed: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    files
}

fn read(path: &Path) -> Document {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let json = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let name = path.file_name().unwrap_or_default();
    Document {
        name: name.to_string_lossy().into_owned(),
        json,
    }
}

/// Whose vectors these are. The names of groups and of kinds decide, so a file may have any name.
fn protocol_of(json: &Value) -> Option<Protocol> {
    let members = json.as_object()?;
    let has = |name: &str| members.contains_key(name);
    if VOLTCHAT_GROUPS.into_iter().any(has) {
        return Some(Protocol::Voltchat);
    }
    if has("one_stack") || has("bridge_policy") {
        return Some(Protocol::Other("lama"));
    }
    if has("nodes") && has("handshake") {
        return Some(Protocol::Other("asfp"));
    }
    if has("http_cases") || has("http_cases_about") {
        return Some(Protocol::Paracord);
    }
    let vectors = members.get("vectors")?.as_array()?;
    // Both protocols have a kind `envelope_signature`; a dialect is UAM's alone.
    let paracords = |vector: &Value| {
        let kind = vector.get("kind").and_then(Value::as_str).unwrap_or("");
        PARACORD_KINDS.contains(&kind) && vector.get("dialect").is_none()
    };
    Some(match vectors.first() {
        Some(first) if paracords(first) => Protocol::Paracord,
        _ => Protocol::Uam,
    })
}
