//! What a reference does of its own accord: it polls, and calls other servers for its users.

use std::sync::atomic::Ordering;

use serde::Serialize;
use serde_json::Value;

use super::typed::{Envelope, Member, normal};
use super::{Inner, Key, Peer};
use crate::support::paracord_client::{BASE, canonical, holds, now_ms};
use crate::support::uam_client::now_ns;

const USER_AGENT: &str = "Paracord-Federation/0.4";

impl Inner {
    /// The first listed key of a server, under the name inside the entry: fetched this once.
    pub(super) async fn fetch_key(&self, peer: &Peer) -> bool {
        let url = format!("{}/keys", peer.endpoint);
        let Ok(answer) = self.client.get(url).send().await else {
            return false;
        };
        let text = answer.text().await.unwrap_or_default();
        let list: Value = serde_json::from_str(&text).unwrap_or_default();
        let first = &list["keys"][0];
        let text = |member: &str| first[member].as_str().map(str::to_owned);
        let (Some(server), Some(id), Some(public)) =
            (text("server_name"), text("key_id"), text("public_key"))
        else {
            return false;
        };
        let key = Key {
            server,
            id,
            public,
            valid_until: first["valid_until"].as_i64().unwrap_or(0),
        };
        let mut state = self.state();
        state
            .keys
            .retain(|k| (&k.server, &k.id) != (&key.server, &key.id));
        state.keys.push(key);
        true
    }

    /// Every mirrored guild of every trusted peer, by the peer's domain and then by its name.
    pub(super) async fn rounds(&self) {
        let _one = self.round.lock().await;
        let (peers, mirrored) = {
            let state = self.state();
            (state.peers.clone(), state.mirrored.clone())
        };
        for peer in peers.iter().filter(|p| p.trusted) {
            let guilds = mirrored.iter().filter(|(name, _)| *name == peer.name);
            for (_, guild) in guilds.take(64) {
                self.poll(peer, &format!("!{guild}:{}", peer.domain)).await;
                if peer.domain != peer.name {
                    self.poll(peer, &format!("!{guild}:{}", peer.name)).await;
                }
            }
        }
    }

    async fn poll(&self, peer: &Peer, room: &str) {
        let place = (peer.name.clone(), room.to_owned());
        let since = self.state().cursors.get(&place).copied().unwrap_or(0);
        let url = format!(
            "{}/events?room_id={room}&since_depth={since}&limit={}",
            peer.endpoint, self.options.page
        );
        self.state().counts.polls += 1;
        let Ok((status, answer)) = self.get(&url).await else {
            // The peer is away: the next round comes.
            return;
        };
        if status != 200 {
            // A room that another server does not serve under that name is an answer too.
            if status != 404 && status != 429 && status < 500 {
                self.complain(format!("GET {url}: {status} {answer}"));
            }
            return;
        }
        let Some(events) = answer["events"].as_array() else {
            self.complain(format!("GET {url}: no events in {answer}"));
            return;
        };
        let mut newest = since;
        for event in events {
            let envelope: Envelope = match serde_json::from_value(event.clone()) {
                Ok(envelope) => envelope,
                Err(e) => {
                    self.complain(format!("an event that does not decode: {e}: {event}"));
                    continue;
                }
            };
            newest = newest.max(envelope.depth.max(envelope.origin_ts));
            if envelope.origin_server == self.options.identity.name {
                // It drops its own echoes by the ids it has.
                if !self.state().ids.contains_key(&envelope.event_id) {
                    self.complain(format!("an event of ours that we never made: {event}"));
                }
                continue;
            }
            if let Err(why) = self.proven(&envelope) {
                self.complain(format!("a polled event: {why}: {event}"));
                continue;
            }
            let mut state = self.state();
            let inserted = state.store(envelope.clone());
            if inserted {
                state.counts.polled += 1;
                let at = state.note(&peer.name, &envelope, true, now_ns());
                state.arrived[at].polled = true;
                state.arrived[at].answered = Some(now_ns());
            }
        }
        self.state().cursors.insert(place, newest);
        self.happened();
    }

    /// Whether an envelope's origin is trusted, its key known and its signature good.
    pub(super) fn proven(&self, envelope: &Envelope) -> Result<(), String> {
        let (id, signature) = envelope.signature().ok_or("no signature of its origin")?;
        let state = self.state();
        let origin = &envelope.origin_server;
        state.trusted(origin).ok_or("its origin is not trusted")?;
        let key = state.key(origin, &id).ok_or("no such key, or expired")?;
        let text = canonical(&envelope.value());
        if holds(&key.public, text.as_bytes(), &signature) {
            Ok(())
        } else {
            Err("its signature does not hold".into())
        }
    }

    async fn get(&self, url: &str) -> Result<(u16, Value), reqwest::Error> {
        let me = &self.options.identity;
        // What a sender signs is the path as the URL library writes it.
        let parsed = url::Url::parse(url).expect("an endpoint");
        let mut request = me.get("/events");
        request.path = parsed[url::Position::BeforePath..url::Position::AfterQuery].to_owned();
        me.dress(&mut request, now_ms());
        request
            .headers
            .insert("user-agent".into(), USER_AGENT.into());
        let server = parsed[..url::Position::BeforePath].to_owned();
        let answer = request.try_send(&self.client, &server).await?;
        Ok((answer.status, answer.json))
    }

    pub(super) async fn member(
        &self,
        peer: &str,
        route: &str,
        room: &str,
        user: &str,
    ) -> (u16, Value) {
        let body = Member {
            origin_server: self.options.identity.name.clone(),
            room_id: room.into(),
            user_id: user.into(),
        };
        self.post(peer, route, &body).await
    }

    /// Up to three tries on connection errors and 5xx, each freshly signed over the normal form.
    pub(super) async fn post(
        &self,
        peer: &str,
        route: &str,
        body: &impl Serialize,
    ) -> (u16, Value) {
        let me = &self.options.identity;
        let endpoint = {
            let state = self.state();
            let peer = state.peers.iter().find(|p| p.name == peer);
            peer.expect("a known peer").endpoint.clone()
        };
        let server = endpoint.trim_end_matches(BASE).to_owned();
        let normal = normal(body);
        let sent = if self.reorder.swap(false, Ordering::Relaxed) {
            serde_json::to_value(body)
                .expect("JSON")
                .to_string()
                .into_bytes()
        } else {
            normal.clone()
        };
        let mut last = (0, Value::Null);
        for pause in [0, 50, 100] {
            tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
            let mut request = me.post(route, sent.clone());
            let path = request.path.clone();
            me.dress_over(&mut request, now_ms(), &path, &normal);
            request
                .headers
                .insert("user-agent".into(), USER_AGENT.into());
            if let Ok(answer) = request.try_send(&self.client, &server).await {
                last = (answer.status, answer.json);
                if answer.status < 500 {
                    break;
                }
            }
        }
        last
    }
}
