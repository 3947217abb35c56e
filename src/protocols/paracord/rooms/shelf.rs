//! Rooms as memory has them. What is loaded and what is changed goes through one door,
//! [`Shelf::take`], so that memory after a change and after a restart cannot differ.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::record::{self, Followed, Hosted, Known, Member};
use crate::protocol::PeerName;

/// Everything known of rooms.
#[derive(Default)]
pub(super) struct Shelf {
    pub hosted: BTreeMap<String, Arc<Hosted>>,
    pub followed: BTreeMap<String, Arc<Followed>>,
    pub rolls: HashMap<String, Roll>,
    pub readers: HashMap<String, BTreeSet<PeerName>>,
    pub users: HashMap<String, Known>,
}

/// Who is in a room.
#[derive(Default)]
pub(super) struct Roll {
    pub users: BTreeMap<String, Member>,
    /// How many of them each server has, by the server part of their ids, lower case.
    servers: BTreeMap<String, usize>,
}

impl Roll {
    /// Servers with somebody in the room.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.servers.keys().map(String::as_str)
    }

    fn put(&mut self, user: &str, member: Member) {
        if self.users.insert(user.to_owned(), member).is_none() {
            *self.servers.entry(server_of(user)).or_default() += 1;
        }
    }

    fn remove(&mut self, user: &str) {
        if self.users.remove(user).is_none() {
            return;
        }
        let server = server_of(user);
        if let Some(count) = self.servers.get_mut(&server) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.servers.remove(&server);
            }
        }
    }
}

/// The server part of a user id, lower case; empty where there is none.
fn server_of(user: &str) -> String {
    let server = user.split_once(':').map_or("", |(_, server)| server);
    server.to_ascii_lowercase()
}

impl Shelf {
    /// Takes a row over; `None` deletes. Refused with a sentence where the row is not of its kind's
    /// form.
    pub fn take(&mut self, kind: &str, key: &str, value: Option<&str>) -> Result<(), String> {
        match kind {
            record::ROOM => match read(value)? {
                Some(room) => drop(self.hosted.insert(key.to_owned(), Arc::new(room))),
                None => drop(self.hosted.remove(key)),
            },
            record::FOLLOW => match read(value)? {
                Some(follow) => drop(self.followed.insert(key.to_owned(), Arc::new(follow))),
                None => drop(self.followed.remove(key)),
            },
            record::USER => match read(value)? {
                Some(user) => drop(self.users.insert(key.to_owned(), user)),
                None => drop(self.users.remove(key)),
            },
            record::MEMBER => {
                let (room, user) = parts(key)?;
                let member = read(value)?;
                let roll = self.rolls.entry(room.to_owned()).or_default();
                match member {
                    Some(member) => roll.put(user, member),
                    None => roll.remove(user),
                }
                if roll.users.is_empty() {
                    self.rolls.remove(room);
                }
            }
            record::READER => {
                let (room, peer) = parts(key)?;
                let peer = PeerName::parse(peer).map_err(|error| error.to_string())?;
                if value.is_some() {
                    self.readers
                        .entry(room.to_owned())
                        .or_default()
                        .insert(peer);
                } else if let Some(readers) = self.readers.get_mut(room) {
                    readers.remove(&peer);
                    if readers.is_empty() {
                        self.readers.remove(room);
                    }
                }
            }
            other => return Err(format!("rooms keep no rows of kind {other:?}")),
        }
        Ok(())
    }

    /// Users in a room; none where nobody is.
    pub fn users_in(&self, room: &str) -> impl Iterator<Item = (&String, &Member)> {
        self.rolls
            .get(room)
            .into_iter()
            .flat_map(|roll| &roll.users)
    }

    /// Whether this user is in the room.
    pub fn is_member(&self, room: &str, user: &str) -> bool {
        let roll = self.rolls.get(room);
        roll.is_some_and(|roll| roll.users.contains_key(user))
    }
}

fn read<T: DeserializeOwned>(value: Option<&str>) -> Result<Option<T>, String> {
    value
        .map(serde_json::from_str)
        .transpose()
        .map_err(|error| format!("the row cannot be read: {error}"))
}

fn parts(key: &str) -> Result<(&str, &str), String> {
    key.split_once(record::SEPARATOR)
        .ok_or_else(|| "the row's key has one part instead of two".to_owned())
}
