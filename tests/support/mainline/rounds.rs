//! The scripted mainline as a client: what it asks of its peers, round after round.

use super::*;

impl Inner {
    pub(super) async fn call(
        &self,
        peer: &Peer,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
        seconds: u64,
        loss: Option<Loss>,
    ) -> Result<Answered, String> {
        let to = peer.url.split("://").last().unwrap_or_default();
        let to: SocketAddr = to.parse().map_err(|_| format!("ENOTFOUND {to}"))?;
        if loss.is_some() {
            self.state().counts.losses += 1;
        }
        let answered = Call {
            to,
            method: "POST",
            path: &format!("{BASE}/{path}"),
            headers,
            body,
            loss,
            patience: Duration::from_secs(seconds),
        }
        .send()
        .await?;
        if answered.status / 100 == 2 {
            return Ok(answered);
        }
        // Told apart by nobody, so printed for whoever looks into a failed test.
        eprintln!("{path}: {}", answered.text());
        Err(format!(
            "Request failed with status code {}",
            answered.status
        ))
    }

    pub(super) async fn request(&self, url: &str, secret: &str) -> Result<(), String> {
        let host = url.split("://").last().unwrap_or_default().to_owned();
        assert!(self.peer(&host).is_none(), "409 Peer already exists");
        let peer = Peer {
            id: self.fresh_id("peer"),
            name: host.clone(),
            url: url.to_owned(),
            host: host.clone(),
            secret: secret.to_owned(),
            status: Status::Pending,
            outgoing: true,
            last_error: None,
            remote_id: None,
        };
        self.state().peers.push(peer.clone());
        let body = format!(
            "{{\"name\":{},\"host\":{},\"url\":{},\"sharedSecret\":{},\"features\":{{\"federation\":true,\"discovery\":true}},\"autoAccept\":false}}",
            self.options.name,
            quoted(&self.host()),
            quoted(&self.url()),
            quoted(secret)
        );
        let outcome = match self.call(&peer, "handshake", &[], &body, 8, None).await {
            Ok(answered) => {
                let answer = answered.json();
                if answered.text().contains(secret) {
                    self.complain("the handshake answer holds the secret".into());
                }
                if answer["accepted"] == true {
                    let mut state = self.state();
                    if let Some(peer) = state.peers.iter_mut().find(|p| p.host == host) {
                        peer.status = Status::Connected;
                        peer.remote_id = answer["peerId"].as_str().map(str::to_owned);
                    }
                    Ok(())
                } else {
                    Err(format!("not accepted: {answer}"))
                }
            }
            Err(e) => Err(e),
        };
        if let Err(e) = &outcome {
            self.set(&host, Status::Pending, Some(e.clone()));
        }
        self.happened();
        outcome
    }

    /// One round over all peers, one after the other.
    pub(super) async fn rounds(&self) {
        let _one = self.round.lock().await;
        let peers = self.state().peers.clone();
        let spoken = |p: &&Peer| matches!(p.status, Status::Connected | Status::Error);
        for peer in peers.iter().filter(spoken) {
            if self.ping(peer).await {
                self.push_queue(peer).await;
                if self.options.fetches {
                    self.fetch(peer).await;
                }
            }
        }
        self.happened();
    }

    pub(super) async fn ping(&self, peer: &Peer) -> bool {
        let body = self.credentials(peer);
        match self.call(peer, "ping", &[], &body, 8, None).await {
            Ok(answered) => {
                let answer = answered.json();
                if answer["host"] != peer.host.as_str() || !answer["timestamp"].is_string() {
                    self.complain(format!("the ping was answered {answer}"));
                }
                self.set(&peer.host, Status::Connected, None);
                true
            }
            Err(e) => {
                self.set(&peer.host, Status::Error, Some(e));
                false
            }
        }
    }

    pub(super) fn credentials(&self, peer: &Peer) -> String {
        format!(
            "{{\"host\":{},\"token\":{}}}",
            quoted(&self.host()),
            quoted(&self.token(peer))
        )
    }

    /// Two deliveries of the same queue at the same time; what either got through is gone.
    pub(super) async fn push_queue(&self, peer: &Peer) {
        let queue: Vec<Queued> = {
            let state = self.state();
            let queue = state.queues.get(&peer.host);
            queue.map_or_else(Vec::new, |q| q.iter().cloned().collect())
        };
        if queue.is_empty() {
            return;
        }
        let (one, other) = tokio::join!(self.deliver(peer, &queue), self.deliver(peer, &queue));
        let mut state = self.state();
        if let Some(queue) = state.queues.get_mut(&peer.host) {
            queue.retain(|m| !one.contains(&m.id) && !other.contains(&m.id));
        }
    }

    /// In order, each message its own request, until the first that fails.
    pub(super) async fn deliver(&self, peer: &Peer, queue: &[Queued]) -> HashSet<String> {
        let mut delivered = HashSet::new();
        for message in queue {
            let token = self.token(peer);
            let host = self.host();
            let headers = [
                ("x-federation-token", token.as_str()),
                ("x-federation-host", host.as_str()),
            ];
            let body = format!(
                "{{\"id\":{},\"schemaVersion\":1,\"type\":{},\"payload\":{},\"timestamp\":{},\"fromHost\":{},\"fromMainline\":{}}}",
                quoted(&message.id),
                quoted(&message.kind),
                message.payload,
                quoted(&message.stamp),
                quoted(&host),
                self.options.name
            );
            let loss = self.loss(self.options.losses);
            self.state().counts.pushes_out += 1;
            match self
                .call(peer, "relay/push", &headers, &body, 10, loss)
                .await
            {
                Ok(answered) => {
                    if answered.json()["success"] != true {
                        self.complain(format!("a push was answered {}", answered.text()));
                    }
                    delivered.insert(message.id.clone());
                }
                Err(e) => {
                    if e.ends_with("status code 400") {
                        self.complain(format!("{} was refused: {e}", message.id));
                    }
                    self.set(&peer.host, Status::Error, Some(e));
                    break;
                }
            }
        }
        delivered
    }

    pub(super) async fn fetch(&self, peer: &Peer) {
        let loss = if self.state().fetch_lost.contains(&peer.host) {
            None
        } else {
            self.loss(self.options.fetch_losses)
        };
        let body = self.credentials(peer);
        self.state().counts.fetches += 1;
        match self.call(peer, "relay/fetch", &[], &body, 10, loss).await {
            Ok(answered) => {
                self.state().fetch_lost.remove(&peer.host);
                self.set(&peer.host, Status::Connected, None);
                match answered.json() {
                    Value::Array(messages) => self.take(peer, &messages),
                    other => self.complain(format!("a fetch was answered {other}")),
                }
            }
            Err(e) => {
                let mut state = self.state();
                state.counts.lost_batches += u64::from(e == LOST_MESSAGES);
                state.fetch_lost.insert(peer.host.clone());
                drop(state);
                self.set(&peer.host, Status::Error, Some(e));
            }
        }
    }

    pub(super) fn take(&self, peer: &Peer, messages: &[Value]) {
        let mut state = self.state();
        state.counts.largest_batch = state.counts.largest_batch.max(messages.len());
        state.counts.last_batch = messages.len();
        let now = uam_client::now_ns();
        for message in messages {
            if message["fromHost"] != peer.host.as_str() {
                let text = format!("a fetched message says it is from {}", message["fromHost"]);
                state.complaints.push(text);
            }
            state.process(&peer.host, message, false, (now, now), 200);
        }
    }
}
