//! `rooms …`: rooms of ours, rooms we follow and who is in them (Paracord), through the admin API.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::client::AdminClient;
use super::table::{rows, say, show, show_one, text};
use super::{ConfigArgs, Outcome};

/// `drawbridge rooms …`
#[derive(Debug, Subcommand)]
pub enum RoomsCommand {
    /// Rooms of ours, then rooms we follow.
    List(ListArgs),
    /// Makes a room ours, or changes it; what is not named stays as it is.
    Put(PutArgs),
    /// Forgets a room of ours, its members and its readers; its events stay.
    Remove(RoomArgs),
    /// Fetches a room's events from its server, or from another one.
    Follow(FollowArgs),
    /// Fetches them no more.
    Unfollow(RoomArgs),
    /// Who is in a room: others in ours, ours in others'.
    Members(RoomArgs),
    /// Asks a room's server for an invite to it: what it is called and how long that holds.
    Invite(InviteArgs),
    /// Lets a user of ours join a room of another server; it is followed from then on.
    Join(MemberArgs),
    /// Lets a user of ours leave it.
    Leave(MemberArgs),
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

/// Options for one room.
#[derive(Debug, Args)]
pub struct RoomArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// `!GUILD:SERVER`; of a room of ours the guild's number is enough.
    #[arg(value_name = "ROOM", allow_hyphen_values = true)]
    room: String,
    /// The outcome as JSON, one object a line.
    #[arg(long)]
    json: bool,
}

/// Options of `rooms put`.
#[derive(Debug, Args)]
pub struct PutArgs {
    #[command(flatten)]
    room: RoomArgs,
    /// What others are shown.
    #[arg(long)]
    name: Option<String>,
    /// Where a new member begins.
    #[arg(long, value_name = "ID")]
    default_channel: Option<String>,
    /// Whether every trusted server may read it.
    #[arg(long, value_name = "true|false")]
    public: Option<bool>,
    /// Whether others may be invited, join and leave.
    #[arg(long, value_name = "true|false")]
    allowed: Option<bool>,
}

/// Options of `rooms follow`.
#[derive(Debug, Args)]
pub struct FollowArgs {
    #[command(flatten)]
    room: RoomArgs,
    /// The server to ask, if not the room's own.
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
}

/// Options of `rooms invite`.
#[derive(Debug, Args)]
pub struct InviteArgs {
    #[command(flatten)]
    room: RoomArgs,
    /// Who invites: a user of ours, `@NAME:SERVER`.
    sender: String,
    /// How long it is to hold, seconds.
    #[arg(long, value_name = "SECONDS")]
    max_age: Option<u32>,
    /// The server to ask, if not the room's own.
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
}

/// Options of `rooms join` and `rooms leave`.
#[derive(Debug, Args)]
pub struct MemberArgs {
    #[command(flatten)]
    room: RoomArgs,
    /// A user of ours, `@NAME:SERVER`.
    user: String,
    /// The server to ask, if not the room's own.
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
}

/// Runs `rooms …`.
pub async fn rooms(command: RoomsCommand) -> Outcome {
    match command {
        RoomsCommand::List(args) => {
            let answer = call(&args.config, "room.list", &json!({})).await?;
            show_rooms(&rows(answer), args.json);
        }
        RoomsCommand::Put(args) => {
            let mut body = named(&args.room.room);
            put(&mut body, "name", args.name);
            put(&mut body, "default_channel_id", args.default_channel);
            put(&mut body, "public", args.public);
            put(&mut body, "allowed", args.allowed);
            let room = call(&args.room.config, "room.put", &body.into()).await?;
            show_room(&room, args.room.json);
        }
        RoomsCommand::Remove(args) => {
            let answer = call(&args.config, "room.remove", &named(&args.room).into()).await?;
            let end = if answer["removed"] == true {
                "is ours no more"
            } else {
                "was not ours"
            };
            say(
                &answer,
                args.json,
                &format!("{} {end}", text(&answer["room_id"])),
            );
        }
        RoomsCommand::Follow(args) => {
            let mut body = named(&args.room.room);
            put(&mut body, "peer", args.peer);
            let room = call(&args.room.config, "room.follow", &body.into()).await?;
            let from = match room["peer"].as_str() {
                Some(peer) => format!("is followed at {peer}"),
                None => "is followed once its server is known and trusted".into(),
            };
            say(
                &room,
                args.room.json,
                &format!("{} {from}", text(&room["room_id"])),
            );
        }
        RoomsCommand::Unfollow(args) => {
            let answer = call(&args.config, "room.unfollow", &named(&args.room).into()).await?;
            let end = if answer["unfollowed"] == true {
                "is followed no more"
            } else {
                "was not followed"
            };
            say(
                &answer,
                args.json,
                &format!("{} {end}", text(&answer["room_id"])),
            );
        }
        RoomsCommand::Members(args) => {
            let answer = call(&args.config, "room.members", &named(&args.room).into()).await?;
            show(
                &rows(answer),
                args.json,
                &["user", "since_ms"],
                |row, column| match column {
                    "user" => text(&row["user_id"]),
                    other => text(&row[other]),
                },
            );
        }
        RoomsCommand::Invite(args) => {
            let mut body = named(&args.room.room);
            body.insert("sender".into(), args.sender.into());
            put(&mut body, "max_age_seconds", args.max_age);
            put(&mut body, "server", args.server);
            let answer = call(&args.room.config, "invite", &body.into()).await?;
            show_invite(&answer, args.room.json);
        }
        RoomsCommand::Join(args) => return member(args, "join", "joined").await,
        RoomsCommand::Leave(args) => return member(args, "leave", "left").await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn member(args: MemberArgs, method: &str, done: &str) -> Outcome {
    let mut body = named(&args.room.room);
    let said = format!("{} {done} {}", args.user, args.room.room);
    body.insert("user_id".into(), args.user.into());
    put(&mut body, "server", args.server);
    let answer = call(&args.room.config, method, &body.into()).await?;
    say(&answer, args.room.json, &said);
    Ok(ExitCode::SUCCESS)
}

/// The room of a call.
fn named(room: &str) -> Map<String, Value> {
    let member = match room.parse::<i64>() {
        Ok(_) => "guild_id",
        Err(_) => "room_id",
    };
    Map::from_iter([(member.to_owned(), room.into())])
}

/// Puts a member where one was given.
fn put(body: &mut Map<String, Value>, member: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        body.insert(member.to_owned(), value.into());
    }
}

/// Asks the bridge; the answer of `fed.do.paracord.<method>`.
async fn call(config: &ConfigArgs, method: &str, body: &Value) -> Result<Value, String> {
    let admin = AdminClient::from_config(&config.load()?)?;
    Ok(admin.call("paracord", method, body).await?)
}

fn show_rooms(rows: &[Value], as_json: bool) {
    show(
        rows,
        as_json,
        &[
            "room", "kind", "name", "public", "allowed", "members", "with",
        ],
        |row, column| match column {
            "room" => text(&row["room_id"]),
            "with" => with(row),
            other => text(&row[other]),
        },
    );
}

/// The servers a room is shared with: where its members are, or where it is fetched.
fn with(row: &Value) -> String {
    match row["servers"].as_array() {
        None => text(&row["peer"]),
        Some(servers) => {
            let servers: Vec<String> = servers.iter().map(text).collect();
            servers.join(" ")
        }
    }
}

fn show_room(room: &Value, as_json: bool) {
    show_one(
        room,
        as_json,
        &[
            ("room", text(&room["room_id"])),
            ("name", text(&room["name"])),
            ("default channel", text(&room["default_channel_id"])),
            ("public", text(&room["public"])),
            ("allowed", text(&room["allowed"])),
            ("members", text(&room["members"])),
            ("with", with(room)),
        ],
    );
}

fn show_invite(invite: &Value, as_json: bool) {
    show_one(
        invite,
        as_json,
        &[
            ("room", text(&invite["room_id"])),
            ("guild", text(&invite["guild_id"])),
            ("name", text(&invite["guild_name"])),
            ("default channel", text(&invite["default_channel_id"])),
            ("holds, seconds", text(&invite["expires_in_seconds"])),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_of_ours_may_be_named_by_its_number() {
        assert_eq!(Value::from(named("-7")), json!({"guild_id": "-7"}));
        assert_eq!(Value::from(named("!7:b")), json!({"room_id": "!7:b"}));
    }

    #[test]
    fn a_list_says_whom_a_room_is_shared_with() {
        assert_eq!(
            with(&json!({"servers": ["a.example", "b.example"]})),
            "a.example b.example"
        );
        assert_eq!(with(&json!({"peer": "c.example"})), "c.example");
    }
}
