//! `drawbridge store …`: what the ledger is, a copy of it, and its move to PostgreSQL.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::table::show;
use super::{ConfigArgs, Outcome};
use crate::config::{StoreConfig, StorePlace};
use crate::store::{self, Backup, Moved};

/// `drawbridge store …`
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Where it is, its size, its schema's version, rows by table.
    Info(InfoArgs),
    /// Copy an SQLite store into a file, while the bridge runs too.
    Backup(BackupArgs),
    /// Move a stopped bridge's state from SQLite to PostgreSQL, and prove the counts.
    Migrate(MigrateArgs),
}

/// `drawbridge store info`
#[derive(Debug, Args)]
pub struct InfoArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// `drawbridge store backup`
#[derive(Debug, Args)]
pub struct BackupArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The copy; must not exist yet.
    file: PathBuf,
}

/// `drawbridge store migrate`
#[derive(Debug, Args)]
pub struct MigrateArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// An empty database (or schema): postgres://USER@HOST/DATABASE. A password is better given by
    /// PGPASSFILE (~/.pgpass), or with --to-file.
    #[arg(long, value_name = "URL", required_unless_present = "to_file")]
    to: Option<String>,
    /// A file that holds the address, as store.url_file does.
    #[arg(long, value_name = "FILE", conflicts_with = "to")]
    to_file: Option<PathBuf>,
    /// The counts as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs one of them.
pub async fn store(command: StoreCommand) -> Outcome {
    match command {
        StoreCommand::Info(args) => info(args).await,
        StoreCommand::Backup(args) => backup(args).await,
        StoreCommand::Migrate(args) => migrate(args).await,
    }
}

async fn info(args: InfoArgs) -> Outcome {
    let config = args.config.load()?;
    there(&config.store)?;
    let found = store::info(&config.store)
        .await
        .map_err(|e| e.to_string())?;
    if args.json {
        println!("{}", json!(found));
        return Ok(ExitCode::SUCCESS);
    }
    println!("store   {}", found.place);
    println!("id      {}", found.id);
    println!("schema  {}", found.schema);
    println!("size    {} KiB", found.bytes.div_ceil(1024));
    println!();
    let rows: Vec<_> = found.tables.iter().map(|t| json!(t)).collect();
    show(&rows, false, &["table", "rows"], |row, column| {
        super::table::text(&row[column])
    });
    Ok(ExitCode::SUCCESS)
}

async fn backup(args: BackupArgs) -> Outcome {
    let config = args.config.load()?;
    there(&config.store)?;
    let done = store::backup(&config.store, &args.file)
        .await
        .map_err(|e| e.to_string())?;
    match done {
        Backup::Written(bytes) => {
            println!(
                "{} is a whole copy ({} KiB)",
                args.file.display(),
                bytes.div_ceil(1024)
            );
            Ok(ExitCode::SUCCESS)
        }
        Backup::Command(command) => Err(format!(
            "nothing was written: PostgreSQL has its own tool for that, which may run beside the bridge:\n  {command}"
        )),
    }
}

async fn migrate(args: MigrateArgs) -> Outcome {
    let config = args.config.load()?;
    let StorePlace::Sqlite(from) = &config.store.place else {
        return Err(format!(
            "the configured store is {} already; the configuration must still name the SQLite file",
            config.store.place.shown()
        ));
    };
    let url = match (&args.to, &args.to_file) {
        (Some(url), _) => url.clone(),
        (None, Some(file)) => crate::config::read_secret(file)?.0.to_string(),
        (None, None) => return Err("say where to: --to URL".into()),
    };
    let to = StoreConfig::parse(&url, Path::new("")).map_err(|e| e.to_string())?;
    let terminal = std::io::stderr().is_terminal();
    let moved = store::transfer(from, &to, |table, done, all| {
        if terminal {
            // Nothing depends on it being seen.
            let _ = write!(std::io::stderr(), "\r\x1b[K{table}: {done} of {all}");
        }
    })
    .await;
    if terminal {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    let moved = moved.map_err(|e| e.to_string())?;
    let rows: Vec<_> = moved
        .iter()
        .map(|m| json!({"table": m.table, "from": m.from, "to": m.to}))
        .collect();
    show(&rows, args.json, &["table", "from", "to"], |row, column| {
        super::table::text(&row[column])
    });
    let unlike: Vec<&Moved> = moved.iter().filter(|m| m.from != m.to).collect();
    if let Some(first) = unlike.first() {
        return Err(format!(
            "the counts differ (first in {}): nothing was kept in {}",
            first.table,
            to.place.shown()
        ));
    }
    if !args.json {
        println!(
            "\nall of {} is in {}; now set store.url (or store.url_file) to it and start the bridge",
            from.display(),
            to.place.shown()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// A file that is not there is said so, rather than made.
fn there(config: &StoreConfig) -> Result<(), String> {
    match &config.place {
        StorePlace::Sqlite(path) if !path.exists() => Err(format!(
            "there is no {}; it is made when the bridge first runs",
            path.display()
        )),
        _ => Ok(()),
    }
}
