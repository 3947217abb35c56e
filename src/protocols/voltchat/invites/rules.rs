//! What invites are, and what may happen to them: pure, with the time passed in.
//!
//! A [`Shelf`] is everything we have shared, oldest first, and the servers that are ours. A change is
//! asked of it and answered with the shelf as it would be and the rows that make it last; nothing is
//! changed here.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::refused::Refused;
use crate::clock::UnixMs;
use crate::protocol::Record;
use crate::protocols::voltchat::{ids, text};

/// Kind of an invite's row; its key is the invite's id.
pub const INVITE: &str = "invite";
/// Kind of the row that counts what was ever shared.
pub const COUNT: &str = "invite_count";
/// Key of that row.
pub const SHARED: &str = "shared";
/// Kind of the row of one of our servers; its key is the server's id.
pub const SERVER: &str = "server";

/// Invites kept at most; dead ones make room for new ones.
pub const MAX_INVITES: usize = 2_000;
/// Servers of our own at most.
pub const MAX_SERVERS: usize = 10_000;
/// Longest name, UTF-16 units.
const NAME: usize = 140;
/// Most uses an invite may ask for.
const MAX_USES: i64 = 1_000_000;

/// One shared invite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    #[serde(skip)]
    pub id: String,
    pub code: String,
    pub server_id: String,
    pub server_name: Option<String>,
    /// Our id of the one peer it is for; `None`: for all.
    pub target: Option<String>,
    /// 0: unlimited.
    pub max_uses: u64,
    pub uses: u64,
    pub expires_ms: Option<UnixMs>,
    pub created_ms: UnixMs,
    /// Its place in the order of sharing.
    pub place: u64,
}

impl Invite {
    /// Past its time or used up.
    pub fn spent(&self, now: UnixMs) -> bool {
        self.expires_ms.is_some_and(|at| at <= now)
            || (self.max_uses > 0 && self.uses >= self.max_uses)
    }

    /// As operators see it; `host` and `name` are our own.
    pub fn shown(&self, host: &str, name: &str) -> Value {
        json!({
            "id": self.id,
            "code": self.code,
            "serverId": self.server_id,
            "serverName": self.server_name,
            "sourceHost": host,
            "sourceMainline": name,
            "targetPeerId": self.target,
            "maxUses": self.max_uses,
            "uses": self.uses,
            "expiresAt": self.expires_ms.map(text::iso),
            "createdAt": text::iso(self.created_ms),
        })
    }

    /// As everybody sees it.
    pub fn shown_publicly(&self, host: &str, name: &str) -> Value {
        json!({
            "id": self.id,
            "code": self.code,
            "serverId": self.server_id,
            "serverName": self.server_name,
            "sourceHost": host,
            "sourceMainline": name,
            "expiresAt": self.expires_ms.map(text::iso),
        })
    }

    fn row(&self) -> Result<Record, Refused> {
        let value = serde_json::to_string(self).map_err(|e| Refused::Unavailable(e.to_string()))?;
        Ok(Record {
            kind: INVITE,
            key: self.id.clone(),
            value: Some(value),
        })
    }
}

/// All we have shared, and the servers that are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shelf {
    /// In the order of sharing.
    invites: Vec<Arc<Invite>>,
    /// Id → name.
    servers: Arc<BTreeMap<String, Option<String>>>,
    /// How many were ever shared.
    shared: u64,
}

/// What a change does.
#[derive(Debug)]
pub struct Plan<T> {
    /// The shelf once the rows are written.
    pub shelf: Shelf,
    /// Written in one commit; none: nothing changes.
    pub rows: Vec<Record>,
    /// What the asker is told.
    pub answer: T,
    /// Invites that made room.
    pub dropped: Vec<Arc<Invite>>,
}

impl<T> Plan<T> {
    fn new(shelf: Shelf, rows: Vec<Record>, answer: T) -> Self {
        Self {
            shelf,
            rows,
            answer,
            dropped: Vec::new(),
        }
    }
}

impl Shelf {
    /// The shelf of these rows (key and value); a row that cannot be read is an error that names it.
    pub fn from_rows(
        invites: Vec<(String, String)>,
        servers: Vec<(String, String)>,
        shared: Option<&str>,
    ) -> Result<Self, String> {
        let read = |(id, value): (String, String)| {
            let invite: Invite = serde_json::from_str(&value)
                .map_err(|e| format!("the stored invite {id} cannot be read: {e}"))?;
            Ok(Arc::new(Invite { id, ..invite }))
        };
        let mut invites: Vec<Arc<Invite>> = invites
            .into_iter()
            .map(read)
            .collect::<Result<_, String>>()?;
        invites.sort_by(|a, b| (a.place, &a.id).cmp(&(b.place, &b.id)));
        let name = |(id, value): (String, String)| {
            let name = serde_json::from_str(&value)
                .map_err(|e| format!("the stored server {id} cannot be read: {e}"))?;
            Ok((id, name))
        };
        let servers: BTreeMap<_, _> = servers
            .into_iter()
            .map(name)
            .collect::<Result<_, String>>()?;
        let last = invites.last().map_or(0, |invite| invite.place + 1);
        let counted = shared.and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Self {
            invites,
            servers: Arc::new(servers),
            shared: last.max(counted),
        })
    }

    /// All invites, in the order of sharing.
    pub fn invites(&self) -> &[Arc<Invite>] {
        &self.invites
    }

    /// Our servers: id and name.
    pub fn servers(&self) -> &BTreeMap<String, Option<String>> {
        &self.servers
    }

    /// What somebody sees who calls himself a host whose peer has this id (`None`: nobody we know, or
    /// no claim at all). The claim is not proven, so targeting is no secrecy.
    pub fn public(&self, claimed: Option<&str>, now: UnixMs) -> impl Iterator<Item = &Arc<Invite>> {
        self.invites.iter().filter(move |invite| {
            !invite.spent(now)
                && invite
                    .target
                    .as_deref()
                    .is_none_or(|target| Some(target) == claimed)
        })
    }

    /// Shares what `body` asks for, under this fresh id. `peer` is the id of the peer so named.
    pub fn share(
        &self,
        body: &Value,
        peer: impl Fn(&str) -> Option<String>,
        id: String,
        now: UnixMs,
    ) -> Result<Plan<Arc<Invite>>, Refused> {
        let wanted = self.wanted(body, peer, now)?;
        let mut shelf = self.clone();
        let dropped = shelf.make_room(now)?;
        if shelf.invites.iter().any(|other| other.id == id) {
            return Err(Refused::Unavailable("two invites were given one id".into()));
        }
        let invite = Arc::new(Invite {
            id,
            created_ms: now,
            place: shelf.shared,
            ..wanted
        });
        shelf.shared += 1;
        let mut rows: Vec<Record> = dropped
            .iter()
            .map(|gone| absent(INVITE, &gone.id))
            .collect();
        rows.push(invite.row()?);
        rows.push(Record {
            kind: COUNT,
            key: SHARED.into(),
            value: Some(shelf.shared.to_string()),
        });
        shelf.invites.push(Arc::clone(&invite));
        Ok(Plan {
            shelf,
            rows,
            answer: invite,
            dropped,
        })
    }

    /// Reads what is asked for, in the order of the sheet.
    fn wanted(
        &self,
        body: &Value,
        peer: impl Fn(&str) -> Option<String>,
        now: UnixMs,
    ) -> Result<Invite, Refused> {
        let code = given(body, "code").ok_or(Refused::Incomplete)?;
        let server = given(body, "serverId").ok_or(Refused::Incomplete)?;
        let code = ids::id(code).ok_or(Refused::BadCode)?.to_owned();
        let server = ids::id(server).ok_or(Refused::BadServer)?.to_owned();
        if !self.servers.contains_key(&server) {
            return Err(Refused::UnknownServer(server));
        }
        let target = match present(body, "targetPeerId") {
            None => None,
            Some(value) => {
                let named = value.as_str().and_then(ids::id);
                let named = named.ok_or(Refused::BadTarget)?;
                let id = peer(named).ok_or_else(|| Refused::UnknownTarget(named.to_owned()))?;
                Some(id)
            }
        };
        let max_uses = match present(body, "maxUses") {
            None => 0,
            Some(value) => text::integer(value, 0, MAX_USES).ok_or(Refused::BadMaxUses)?,
        };
        let expires_ms = match present(body, "expiresAt") {
            None => None,
            Some(value) => {
                let at = value.as_str().and_then(text::parse_time);
                let at = at.ok_or(Refused::BadExpiry)?;
                if at <= now {
                    return Err(Refused::PastExpiry);
                }
                Some(at)
            }
        };
        Ok(Invite {
            id: String::new(),
            code,
            server_id: server,
            server_name: text::field(body.get("serverName"), NAME),
            target,
            max_uses: u64::try_from(max_uses).unwrap_or(0),
            uses: 0,
            expires_ms,
            created_ms: now,
            place: 0,
        })
    }

    /// Drops the oldest dead invite when the shelf is full; all alive: there is no room.
    fn make_room(&mut self, now: UnixMs) -> Result<Vec<Arc<Invite>>, Refused> {
        let mut dropped = Vec::new();
        while self.invites.len() >= MAX_INVITES {
            let dead = self.invites.iter().position(|invite| invite.spent(now));
            let dead = dead.ok_or(Refused::Full(
                "There are too many shared invites already; delete some first",
            ))?;
            dropped.push(self.invites.remove(dead));
        }
        Ok(dropped)
    }

    /// Counts one use of an invite, by its id or code; of several with one code, the first shared.
    pub fn spend(&self, id_or_code: &str, now: UnixMs) -> Result<Plan<Arc<Invite>>, Refused> {
        let found = self
            .invites
            .iter()
            .position(|invite| invite.id == id_or_code || invite.code == id_or_code)
            .ok_or(Refused::UnknownInvite)?;
        let mut shelf = self.clone();
        let slot = shelf.invites.get_mut(found).ok_or(Refused::UnknownInvite)?;
        if slot.spent(now) {
            return Err(Refused::Spent);
        }
        let mut used = Invite::clone(slot);
        used.uses = used.uses.saturating_add(1);
        let used = Arc::new(used);
        *slot = Arc::clone(&used);
        let rows = vec![used.row()?];
        Ok(Plan::new(shelf, rows, used))
    }

    /// Deletes the invite of this id. An unknown one is refused only before anything was ever shared;
    /// later it is simply gone.
    pub fn remove(&self, id: &str) -> Result<Plan<Option<Arc<Invite>>>, Refused> {
        if self.shared == 0 {
            return Err(Refused::UnknownInvite);
        }
        let mut shelf = self.clone();
        let found = shelf.invites.iter().position(|invite| invite.id == id);
        let gone = found.map(|at| shelf.invites.remove(at));
        let rows = gone.iter().map(|gone| absent(INVITE, &gone.id)).collect();
        Ok(Plan::new(shelf, rows, gone))
    }

    /// Makes a server one of ours, or renames it.
    pub fn put_server(&self, body: &Value) -> Result<Plan<(String, Option<String>)>, Refused> {
        let id = server_id(body)?;
        let name = text::field(body.get("name"), NAME);
        if self.servers.get(&id) == Some(&name) {
            return Ok(Plan::new(self.clone(), Vec::new(), (id, name)));
        }
        if !self.servers.contains_key(&id) && self.servers.len() >= MAX_SERVERS {
            return Err(Refused::Full(
                "There are too many servers already; remove some first",
            ));
        }
        let mut shelf = self.clone();
        Arc::make_mut(&mut shelf.servers).insert(id.clone(), name.clone());
        let row = Record {
            kind: SERVER,
            key: id.clone(),
            value: Some(json!(name).to_string()),
        };
        Ok(Plan::new(shelf, vec![row], (id, name)))
    }

    /// A server is ours no more. Invites to it stay until they are deleted. False: it was not.
    pub fn remove_server(&self, body: &Value) -> Result<Plan<(String, bool)>, Refused> {
        let id = server_id(body)?;
        let mut shelf = self.clone();
        let known = Arc::make_mut(&mut shelf.servers).remove(&id).is_some();
        let rows = if known {
            vec![absent(SERVER, &id)]
        } else {
            Vec::new()
        };
        Ok(Plan::new(shelf, rows, (id, known)))
    }
}

/// A member that is there and not null.
fn present<'a>(body: &'a Value, name: &str) -> Option<&'a Value> {
    body.get(name).filter(|value| !value.is_null())
}

/// A text that is not blank.
fn given<'a>(body: &'a Value, name: &str) -> Option<&'a str> {
    let text = body.get(name)?.as_str()?;
    (!text::trim(text).is_empty()).then_some(text)
}

fn server_id(body: &Value) -> Result<String, Refused> {
    let id = body.get("id").and_then(Value::as_str).and_then(ids::id);
    id.map(str::to_owned).ok_or(Refused::BadServer)
}

fn absent(kind: &'static str, key: &str) -> Record {
    Record {
        kind,
        key: key.to_owned(),
        value: None,
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
