//! The scripted mainline as a server: its routes, with its own checks and words.

use super::*;

fn error(status: u16, text: &str) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    let headers = [("content-type", "application/json; charset=utf-8")];
    (status, headers, json!({ "error": text }).to_string()).into_response()
}

impl Inner {
    /// What stands before any route: content type, JSON, and the look at the client's name.
    #[allow(clippy::result_large_err, reason = "the error is the answer")]
    fn read(&self, headers: &HeaderMap, body: &Bytes) -> Result<Value, Response> {
        let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let agent = header("user-agent").unwrap_or_default().to_lowercase();
        if agent.len() < 10
            || ["curl", "wget", "python", "bot"]
                .iter()
                .any(|b| agent.contains(b))
        {
            self.complain(format!("User-Agent {agent:?} costs 30 points"));
        }
        if !header("content-type").is_some_and(|t| t.starts_with("application/json")) {
            self.complain("a POST without the content type of JSON".into());
            return Err(error(415, "Content-Type header required"));
        }
        serde_json::from_slice(body).map_err(|e| {
            self.complain(format!("a body that is no JSON: {e}"));
            error(400, "Bad Request")
        })
    }

    /// Section 4.4, and what the bridge promises beyond it. The time the token was made, ns.
    #[allow(clippy::result_large_err, reason = "the error is the answer")]
    fn authenticate(&self, headers: &HeaderMap, body: &Value) -> Result<(Peer, u64), Response> {
        let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let refused = || error(401, "Missing or invalid federation credentials");
        let token = header("x-federation-token").or_else(|| body["token"].as_str());
        let host = header("x-federation-host")
            .or_else(|| body["host"].as_str())
            .or_else(|| body["fromHost"].as_str());
        let (Some(token), Some(host)) = (token, host) else {
            self.complain("a request without credentials".into());
            return Err(refused());
        };
        let Some(peer) = self.peer(host) else {
            return Err(refused());
        };
        let read = match read_token(&peer.secret, token) {
            Ok(read) => read,
            Err(why) => {
                self.complain(format!("a token of {host}: {why}"));
                return Err(refused());
            }
        };
        if read["host"] != host {
            self.complain(format!("{host} sent the token of {}", read["host"]));
        }
        let nonce = read["nonce"].as_str().unwrap_or_default().to_owned();
        if !self.state().nonces.insert(nonce) {
            self.complain(format!("{host} used a token twice"));
        }
        if matches!(peer.status, Status::Pending | Status::Rejected) {
            return Err(refused());
        }
        let stamp = read["timestamp"].as_u64().unwrap_or_default();
        Ok((peer, stamp * 1_000_000))
    }
}

pub(super) async fn handshake(
    Shared(me): Shared<Arc<Inner>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body = match me.read(&headers, &body) {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let text = |key: &str| body[key].as_str().unwrap_or_default().trim().to_owned();
    let (name, host, url, secret) = (
        text("name"),
        text("host"),
        text("url"),
        text("sharedSecret"),
    );
    if [&name, &host, &url, &secret].iter().any(|t| t.is_empty()) {
        return error(400, "Missing required fields");
    }
    if secret.len() < 16 {
        return error(400, "Invalid sharedSecret");
    }
    if secret.len() != 64 || body["autoAccept"] == true {
        me.complain(format!("not the handshake of a careful peer: {host}"));
    }
    let mut state = me.state();
    let id = if let Some(peer) = state.peers.iter_mut().find(|p| p.host == host) {
        if peer.secret != secret {
            return error(401, "Handshake credentials rejected");
        }
        peer.name = name;
        peer.url = url;
        if peer.status != Status::Connected {
            peer.status = Status::Pending;
        }
        peer.id.clone()
    } else {
        let id = me.fresh_id("peer");
        state.peers.push(Peer {
            id: id.clone(),
            name,
            host,
            url,
            secret,
            status: Status::Pending,
            outgoing: false,
            last_error: None,
            remote_id: None,
        });
        id
    };
    drop(state);
    me.happened();
    let answer = format!(
        "{{\"accepted\":true,\"peerId\":{},\"host\":{},\"name\":{},\"features\":{{}}}}",
        quoted(&id),
        quoted(&me.host()),
        me.options.name
    );
    json_text(answer)
}

fn json_text(text: String) -> Response {
    let headers = [("content-type", "application/json; charset=utf-8")];
    (headers, text).into_response()
}

pub(super) async fn ping(
    Shared(me): Shared<Arc<Inner>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body = match me.read(&headers, &body) {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let peer = match me.authenticate(&headers, &body) {
        Ok((peer, _)) => peer,
        Err(answer) => return answer,
    };
    me.state().counts.pings_in += 1;
    me.set(&peer.host, Status::Connected, None);
    json_text(format!(
        "{{\"host\":{},\"name\":{},\"version\":\"1.0.0\",\"features\":{{}},\"timestamp\":{}}}",
        quoted(&me.host()),
        me.options.name,
        quoted(&uam_client::now_text())
    ))
}

pub(super) async fn push(
    Shared(me): Shared<Arc<Inner>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let at = uam_client::now_ns();
    me.state().counts.pushes_in += 1;
    me.happened();
    let body = match me.read(&headers, &body) {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    if me.options.published {
        return error(401, "Access token required");
    }
    let (peer, sent) = match me.authenticate(&headers, &body) {
        Ok(known) => known,
        Err(answer) => return answer,
    };
    let (answer, place) = {
        let mut state = me.state();
        let status = match (
            me.mood.load(Ordering::Relaxed),
            body["payload"]["answer"].as_u64(),
        ) {
            (0, None) => state.flaky(&body),
            (0, Some(status)) => u16::try_from(status).unwrap_or(500),
            (mood, _) => mood,
        };
        let place = state.process(&peer.host, &body, true, (sent, at), status);
        let answer = match status {
            200 => json_text("{\"success\":true}".into()),
            400 => error(400, "Invalid payload keys"),
            other => error(other, "Not now"),
        };
        (answer, place)
    };
    me.set(&peer.host, Status::Connected, None);
    me.state().arrived[place].answered = Some(uam_client::now_ns());
    answer
}

impl State {
    /// A payload `{"flaky": n}` is answered 503 the first n times.
    fn flaky(&mut self, body: &Value) -> u16 {
        let times = body["payload"]["flaky"].as_u64().unwrap_or(0);
        let id = body["id"].as_str().unwrap_or_default().to_owned();
        let count = self.turned_away.entry(id).or_default();
        if *count < times {
            *count += 1;
            return 503;
        }
        200
    }
}

pub(super) async fn fetch(
    Shared(me): Shared<Arc<Inner>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body = match me.read(&headers, &body) {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    if me.options.published {
        return error(401, "Access token required");
    }
    let peer = match me.authenticate(&headers, &body) {
        Ok((peer, _)) => peer,
        Err(answer) => return answer,
    };
    let mut state = me.state();
    let queue = state.queues.entry(peer.host.clone()).or_default();
    let most = if me.options.fetchable { 50 } else { 0 };
    let batch: Vec<Queued> = queue.drain(..queue.len().min(most)).collect();
    drop(state);
    let texts: Vec<String> = batch.iter().map(|m| me.fetched(m)).collect();
    json_text(format!("[{}]", texts.join(",")))
}

impl Inner {
    fn fetched(&self, message: &Queued) -> String {
        format!(
            "{{\"id\":{},\"schemaVersion\":1,\"fromHost\":{},\"fromMainline\":{},\"type\":{},\"payload\":{},\"timestamp\":{}}}",
            quoted(&message.id),
            quoted(&self.host()),
            self.options.name,
            quoted(&message.kind),
            message.payload,
            quoted(&message.stamp)
        )
    }
}

pub(super) async fn info(Shared(me): Shared<Arc<Inner>>) -> Response {
    json_text(format!(
        "{{\"host\":{},\"name\":{},\"instanceType\":\"voltchat-mainnet\",\"software\":{{\"name\":\"voltchat\",\"protocol\":\"voltchat-federation\"}},\"discoveryVersion\":1,\"federationEnabled\":true,\"apiUrl\":{},\"imageServerUrl\":{},\"cdnEnabled\":false,\"cdnUrl\":null}}",
        quoted(&me.host()),
        me.options.name,
        quoted(&me.url()),
        quoted(&me.url())
    ))
}
