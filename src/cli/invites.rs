//! `invites …`: what we share with VoltChat peers and what they share, through the admin API.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::AdminClient;
use super::table::{printable, rows, say, show, show_one, text};
use super::{ConfigArgs, Outcome};

/// `drawbridge invites …`
#[derive(Debug, Subcommand)]
pub enum InvitesCommand {
    /// Every invite we share, oldest first.
    List(ListArgs),
    /// Shares an invite to one of our servers, with all peers or with one.
    Share(ShareArgs),
    /// Counts one use of an invite.
    Use(OneArgs),
    /// Deletes an invite.
    Remove(OneArgs),
    /// What a peer shares; the last list known when it does not answer.
    Browse(BrowseArgs),
    /// What anybody sees of ours, or who calls himself a host.
    Public(PublicArgs),
    /// The servers that are ours: invites are for these.
    #[command(subcommand)]
    Servers(ServersCommand),
}

/// `drawbridge invites servers …`
#[derive(Debug, Subcommand)]
pub enum ServersCommand {
    /// The servers that are ours.
    List(ListArgs),
    /// A server is ours, or has another name.
    Add(ServerArgs),
    /// A server is ours no more; invites to it stay until they are removed.
    Remove(ServerIdArgs),
}

/// Options of a list.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Options of `invites share`.
#[derive(Debug, Args)]
pub struct ShareArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The invite's code, as the chat server made it.
    code: String,
    /// The server it leads to.
    server_id: String,
    /// The server's name, to show.
    #[arg(long)]
    name: Option<String>,
    /// For this peer alone (its host or id). No secret: whoever claims the peer's host sees it.
    #[arg(long, value_name = "PEER")]
    target: Option<String>,
    /// How often it may be used; 0: without end.
    #[arg(long, value_name = "N")]
    max_uses: Option<u64>,
    /// Until when, RFC 3339.
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// The invite as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Options for one invite.
#[derive(Debug, Args)]
pub struct OneArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Its id; for `use` its code, too.
    id: String,
    /// The outcome as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Options of `invites browse`.
#[derive(Debug, Args)]
pub struct BrowseArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The peer's host, or its id.
    peer: String,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Options of `invites public`.
#[derive(Debug, Args)]
pub struct PublicArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Whom the asker claims to be.
    #[arg(long)]
    host: Option<String>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Options of `invites servers add`.
#[derive(Debug, Args)]
pub struct ServerArgs {
    #[command(flatten)]
    server: ServerIdArgs,
    /// Its name, to show.
    #[arg(long)]
    name: Option<String>,
}

/// Options for one server.
#[derive(Debug, Args)]
pub struct ServerIdArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The server's id.
    id: String,
    /// The outcome as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs `invites …`.
pub async fn invites(command: InvitesCommand) -> Outcome {
    match command {
        InvitesCommand::List(args) => {
            let rows = list(&args.config, "invite.list", &json!({})).await?;
            show_ours(&rows, args.json);
        }
        InvitesCommand::Share(args) => return share(args).await,
        InvitesCommand::Use(args) => {
            let body = json!({"id": args.id});
            let invite = call(&args.config, "invite.use", &body).await?;
            show_invite(&invite, args.json);
        }
        InvitesCommand::Remove(args) => {
            let body = json!({"id": args.id});
            let answer = call(&args.config, "invite.remove", &body).await?;
            say(&answer, args.json, &format!("{} is removed", args.id));
        }
        InvitesCommand::Browse(args) => return browse(args).await,
        InvitesCommand::Public(args) => {
            let rows = list(&args.config, "invite.public", &json!({"host": args.host})).await?;
            show_public(&rows, args.json);
        }
        InvitesCommand::Servers(command) => return servers(command).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn share(args: ShareArgs) -> Outcome {
    let body = json!({
        "code": args.code,
        "serverId": args.server_id,
        "serverName": args.name,
        "targetPeerId": args.target,
        "maxUses": args.max_uses,
        "expiresAt": args.expires,
    });
    let invite = call(&args.config, "invite.share", &body).await?;
    show_invite(&invite, args.json);
    Ok(ExitCode::SUCCESS)
}

async fn browse(args: BrowseArgs) -> Outcome {
    let body = json!({"peer": args.peer});
    let mut answer = call(&args.config, "invite.browse", &body).await?;
    let rows = rows(answer["invites"].take());
    // What is about the list goes beside it, so that a program reads rows alone.
    if let Some(why) = answer["error"].as_str() {
        eprintln!(
            "{}: {}; this is its list of {}",
            printable(&text(&answer["peer"])),
            printable(why),
            text(&answer["fetchedAt"])
        );
    }
    if answer["leftOut"].as_u64().is_some_and(|left| left > 0) {
        eprintln!("{} entries were wrong or too many", answer["leftOut"]);
    }
    show_public(&rows, args.json);
    Ok(ExitCode::SUCCESS)
}

async fn servers(command: ServersCommand) -> Outcome {
    match command {
        ServersCommand::List(args) => {
            let rows = list(&args.config, "server.list", &json!({})).await?;
            show(&rows, args.json, &["id", "name"], |row, column| {
                text(&row[column])
            });
        }
        ServersCommand::Add(args) => {
            let body = json!({"id": args.server.id, "name": args.name});
            let answer = call(&args.server.config, "server.put", &body).await?;
            let said = format!("{} is ours", text(&answer["id"]));
            say(&answer, args.server.json, &said);
        }
        ServersCommand::Remove(args) => {
            let body = json!({"id": args.id});
            let answer = call(&args.config, "server.remove", &body).await?;
            let said = if answer["removed"] == true {
                format!("{} is ours no more", text(&answer["id"]))
            } else {
                format!("{} was not ours", text(&answer["id"]))
            };
            say(&answer, args.json, &said);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks the bridge; the answer of `fed.do.voltchat.<method>`.
async fn call(config: &ConfigArgs, method: &str, body: &Value) -> Result<Value, String> {
    let admin = AdminClient::from_config(&config.load()?)?;
    Ok(admin.call("voltchat", method, body).await?)
}

async fn list(config: &ConfigArgs, method: &str, body: &Value) -> Result<Vec<Value>, String> {
    Ok(rows(call(config, method, body).await?))
}

fn show_ours(rows: &[Value], as_json: bool) {
    show(
        rows,
        as_json,
        &["id", "code", "server", "name", "for", "uses", "expires"],
        |row, column| match column {
            "server" => text(&row["serverId"]),
            "name" => text(&row["serverName"]),
            "for" => match row["targetPeerId"].as_str() {
                Some(peer) => peer.to_owned(),
                None => "all".into(),
            },
            "uses" => uses(row),
            "expires" => text(&row["expiresAt"]),
            other => text(&row[other]),
        },
    );
}

fn show_public(rows: &[Value], as_json: bool) {
    show(
        rows,
        as_json,
        &["code", "server", "name", "from", "expires"],
        |row, column| match column {
            "server" => text(&row["serverId"]),
            "name" => text(&row["serverName"]),
            "from" => text(&row["sourceHost"]),
            "expires" => text(&row["expiresAt"]),
            other => text(&row[other]),
        },
    );
}

fn show_invite(invite: &Value, as_json: bool) {
    let target = invite["targetPeerId"].as_str().unwrap_or("all peers");
    show_one(
        invite,
        as_json,
        &[
            ("id", text(&invite["id"])),
            ("code", text(&invite["code"])),
            ("server", text(&invite["serverId"])),
            ("name", text(&invite["serverName"])),
            ("for", target.to_owned()),
            ("uses", uses(invite)),
            ("expires", text(&invite["expiresAt"])),
        ],
    );
}

/// `1 of 5`, or `1` when there is no end.
fn uses(invite: &Value) -> String {
    match invite["maxUses"].as_u64() {
        None | Some(0) => text(&invite["uses"]),
        Some(most) => format!("{} of {most}", invite["uses"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_say_how_many_are_allowed_where_there_is_an_end() {
        assert_eq!(uses(&json!({"uses": 1, "maxUses": 5})), "1 of 5");
        assert_eq!(uses(&json!({"uses": 3, "maxUses": 0})), "3");
    }
}
