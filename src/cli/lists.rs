//! `keys show`: our public keys, from their files.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::table::{show, text};
use super::{ConfigArgs, Outcome};
use crate::identity::SigningKey;

/// `drawbridge keys …`
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Our public keys and their fingerprints.
    Show(ListArgs),
}

/// Options of a list.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Shows our keys, from their files: this needs no running bridge.
pub fn keys(command: KeysCommand) -> Outcome {
    let KeysCommand::Show(args) = command;
    let config = args.config.load()?;
    let path = &config.uam.key_path;
    if !path.exists() {
        return Err(format!(
            "{} does not exist yet: the first `drawbridge run` makes it",
            path.display()
        ));
    }
    let (key, _) = SigningKey::load_or_create(path).map_err(|e| e.to_string())?;
    let public = key.public();
    let rows = vec![
        json!({"protocol": "uam", "name": config.uam.domain, "public_key": public.to_base64(),
        "fingerprint": public.fingerprint(), "file": path}),
    ];
    show(
        &rows,
        args.json,
        &["protocol", "name", "public_key", "fingerprint"],
        |row, column| text(&row[column]),
    );
    Ok(ExitCode::SUCCESS)
}
