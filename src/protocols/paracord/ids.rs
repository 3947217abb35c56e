//! Names on the wire: rooms, users, events (sheet, 1 and 4).
//!
//! Others' ids are opaque but for what [`Room::parse`] and [`User::parse`] read. Ours are made here,
//! in the form servers expect, and so that no two events of ours share one: what is said in two
//! rooms at once differs in its room.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::identity::hex;

/// Longest emoji that stands in an event id as it is, bytes; a longer one is only hashed.
const MAX_EMOJI: usize = 64;

/// A room: `!<guild>:<server>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Room {
    /// Signed 64-bit.
    pub guild: i64,
    /// The server it lives on, lower case, trimmed.
    pub server: String,
}

impl Room {
    /// Reads a room id as every server reads it: what follows `!` is split at the first `:`, its left
    /// part is a number (`+7` and `007` are 7), its right part is trimmed and not empty.
    pub fn parse(text: &str) -> Option<Self> {
        let (guild, server) = text.strip_prefix('!')?.split_once(':')?;
        let server = server.trim().to_ascii_lowercase();
        let guild = guild.parse().ok()?;
        (!server.is_empty()).then_some(Self { guild, server })
    }

    /// The one spelling of this room, for tables and comparing.
    pub fn key(&self) -> String {
        format!("!{}:{}", self.guild, self.server)
    }
}

/// A user: `@<localpart>:<server>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User<'a> {
    /// What stands before the first colon; any characters.
    pub localpart: &'a str,
    /// Everything behind it, as it is written.
    pub server: &'a str,
}

impl<'a> User<'a> {
    /// Reads a user id as every server reads it; neither part is empty, nothing else is asked.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (localpart, server) = text.strip_prefix('@')?.split_once(':')?;
        (!localpart.is_empty() && !server.is_empty()).then_some(Self { localpart, server })
    }
}

/// The id of an event of ours. `content` is checked ([`super::content::outgoing`]); `depth` rises
/// within a room.
pub fn event_id(
    kind: &str,
    content: &Value,
    room_id: &str,
    sender: &str,
    depth: i64,
    domain: &str,
) -> String {
    if let Some(id) = claimed_id(kind, content, domain) {
        return id;
    }
    let stable = stable(kind, content).unwrap_or_else(|| digest(content, room_id, sender));
    format!("${}:{stable}:{depth}:{domain}", kind.replace('.', "_"))
}

/// The id a message has by its own number, whenever it is sent; None: of other events, and of a
/// message without one.
pub fn claimed_id(kind: &str, content: &Value, domain: &str) -> Option<String> {
    if kind != "m.message" {
        return None;
    }
    let message = content.get("message_id")?.as_str()?;
    Some(format!("${message}:{domain}"))
}

/// What the id of an event says of it, by its type; None: nothing that can be said shortly.
fn stable(kind: &str, content: &Value) -> Option<String> {
    let text = |member: &str| content.get(member)?.as_str();
    match kind {
        "m.message.edit" | "m.message.delete" => text("message_id").map(str::to_owned),
        "m.reaction.add" | "m.reaction.remove" => {
            let emoji = text("emoji").filter(|emoji| {
                let odd = |c: char| c.is_control() || c.is_whitespace();
                emoji.len() <= MAX_EMOJI && !emoji.contains(odd)
            })?;
            Some(format!("{}:{emoji}", text("message_id")?))
        }
        "m.member.join" | "m.member.leave" => {
            Some(format!("{}:{}", text("guild_id")?, text("user_id")?))
        }
        _ => None,
    }
}

/// Twelve hex digits of what is said, where and by whom. The reference hashes the content alone; two
/// rooms can hear the same within one millisecond, and ids are opaque to whoever reads them.
fn digest(content: &Value, room_id: &str, sender: &str) -> String {
    let said = format!("{content}\n{room_id}\n{sender}");
    let mut digits = hex(&Sha256::digest(said.as_bytes()));
    digits.truncate(12);
    digits
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_room_has_one_key_however_it_is_written() {
        let key = |text: &str| Room::parse(text).map(|room| room.key());
        let one = Some("!7:chat.example".to_owned());
        for text in ["!7:chat.example", "!+7:Chat.Example", "!007: chat.example "] {
            assert_eq!(key(text), one, "{text:?}");
        }
        assert_eq!(
            key(&format!("!{}:a:b", i64::MIN)),
            Some("!-9223372036854775808:a:b".into())
        );
        for text in [
            "7:a",
            "!7",
            "!7:",
            "!7: ",
            "!:a",
            "!x:a",
            "! 7:a",
            "!9223372036854775808:a",
            "",
        ] {
            assert_eq!(key(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_user_is_split_at_the_first_colon() {
        let user = User::parse("@a:b:8443").expect("a user");
        assert_eq!((user.localpart, user.server), ("a", "b:8443"));
        for text in ["a:b", "@:b", "@a:", "@a", "", "@"] {
            assert_eq!(User::parse(text), None, "{text:?}");
        }
    }

    fn id(kind: &str, content: &Value) -> String {
        event_id(kind, content, "!1:x", "@a:x", 9, "x")
    }

    #[test]
    fn an_id_is_made_of_what_stays_the_same_about_an_event() {
        let all = json!({"message_id": "5", "emoji": "👍", "guild_id": "1", "user_id": "2"});
        for (kind, expected) in [
            ("m.message", "$5:x"),
            ("m.message.edit", "$m_message_edit:5:9:x"),
            ("m.message.delete", "$m_message_delete:5:9:x"),
            ("m.reaction.add", "$m_reaction_add:5:👍:9:x"),
            ("m.reaction.remove", "$m_reaction_remove:5:👍:9:x"),
            ("m.member.join", "$m_member_join:1:2:9:x"),
            ("m.member.leave", "$m_member_leave:1:2:9:x"),
        ] {
            assert_eq!(id(kind, &all), expected);
        }
        assert_eq!(claimed_id("m.message", &all, "x"), Some("$5:x".into()));
        assert_eq!(claimed_id("m.message.edit", &all, "x"), None);
    }

    #[test]
    fn the_same_said_in_two_rooms_at_once_are_two_events() {
        let content = json!({"on": true});
        let ids = [
            event_id("m.typing", &content, "!1:x", "@a:x", 9, "x"),
            event_id("m.typing", &content, "!2:x", "@a:x", 9, "x"),
            event_id("m.typing", &content, "!1:x", "@b:x", 9, "x"),
        ];
        assert!(ids[0] != ids[1] && ids[0] != ids[2]);
        for id in ids {
            let parts: Vec<&str> = id.split(':').collect();
            assert_eq!((parts[0], parts[1].len(), parts[2]), ("$m_typing", 12, "9"));
        }
    }

    #[test]
    fn an_emoji_too_long_or_broken_over_lines_does_not_stand_in_an_id() {
        for emoji in ["x".repeat(65), "a\nb".into(), "a b".into()] {
            let made = id(
                "m.reaction.add",
                &json!({"message_id": "5", "emoji": emoji}),
            );
            assert!(made.len() < 64 && !made.contains(&emoji), "{made}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config {
            failure_persistence: None,
            ..Default::default()
        })]

        #[test]
        fn the_key_of_a_room_is_the_key_of_its_key(guild: i64, server in "[^\\s]{1,20}") {
            let room = Room::parse(&format!("!{guild}:{server}")).expect("a room");
            proptest::prop_assert_eq!(Room::parse(&room.key()), Some(room));
        }

        #[test]
        fn any_text_is_a_name_or_none(text: String) {
            if let Some(user) = User::parse(&text) {
                proptest::prop_assert_eq!(format!("@{}:{}", user.localpart, user.server), text.clone());
            }
            if let Some(room) = Room::parse(&text) {
                proptest::prop_assert!(!room.server.is_empty());
            }
        }
    }
}
