//! `peers add|accept|reject|remove`: peerings that people decide, through the admin API.
//!
//! Before a peering is accepted, its operator sees what the other side said of itself and what stands
//! there: a handshake proves nothing, anybody may claim any host in one.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::cli::client::{AdminClient, AdminError};
use crate::cli::table::{printable, text};
use crate::cli::{ConfigArgs, Outcome};

/// Protocols whose peerings a person decides; the first is meant where none is named.
pub(super) const PEERING: [&str; 1] = ["voltchat"];

/// Which peering.
#[derive(Debug, Args)]
pub struct PeeringArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The other server's host, such as `chat.example.org`, optionally with the protocol before it.
    #[arg(num_args = 1..=2, required = true, value_names = ["PROTOCOL", "HOST"])]
    target: Vec<String>,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
}

/// Options of `peers add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    #[command(flatten)]
    peering: PeeringArgs,
    /// What we call it; its host if left out.
    #[arg(long)]
    name: Option<String>,
    /// Where it answers, if not at https://HOST.
    #[arg(long)]
    url: Option<String>,
    /// Ask once more under the same secret: it failed before, or the other side has forgotten us.
    #[arg(long, conflicts_with_all = ["name", "url"])]
    again: bool,
}

/// Options of `peers accept`.
#[derive(Debug, Args)]
pub struct AcceptArgs {
    #[command(flatten)]
    peering: PeeringArgs,
    /// Accept without asking.
    #[arg(long, short)]
    yes: bool,
}

impl PeeringArgs {
    fn protocol(&self) -> Result<&str, String> {
        match self.target.as_slice() {
            [protocol, _] if !PEERING.contains(&protocol.as_str()) => Err(format!(
                "peers of {protocol:?} are not asked or accepted one by one; that is for {}",
                PEERING.join(", ")
            )),
            [protocol, _] => Ok(protocol),
            _ => Ok(PEERING[0]),
        }
    }

    fn host(&self) -> &str {
        self.target.last().map_or("", String::as_str)
    }
}

/// A protocol's methods, about one peer.
struct Desk<'a> {
    admin: AdminClient,
    protocol: &'a str,
    host: &'a str,
    json: bool,
}

impl<'a> Desk<'a> {
    fn new(args: &'a PeeringArgs) -> Result<Self, String> {
        Ok(Self {
            admin: AdminClient::from_config(&args.config.load()?)?,
            protocol: args.protocol()?,
            host: args.host(),
            json: args.json,
        })
    }

    async fn ask(&self, method: &str, body: &Value) -> Result<Value, AdminError> {
        self.admin.call(self.protocol, method, body).await
    }

    async fn about(&self, method: &str) -> Result<Value, AdminError> {
        self.ask(method, &json!({"peer": self.host})).await
    }
}

/// `peers add`: asks another server to peer with us.
pub(super) async fn add(args: AddArgs) -> Outcome {
    let desk = Desk::new(&args.peering)?;
    let mut body = json!({"name": args.name.as_deref().unwrap_or(desk.host), "host": desk.host});
    if let Some(url) = &args.url {
        body["url"] = url.as_str().into();
    }
    let peer = match args.again {
        true => desk.about("peer.handshake").await?,
        false => desk.ask("peer.request", &body).await?,
    };
    if desk.json {
        println!("{peer}");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(match peer["lastError"].as_str() {
        Some(why) => {
            println!("{} is kept, but could not be asked:", text(&peer["host"]));
            println!("  {}", printable(why));
            println!("Once that is mended, ask again: `drawbridge peers add --again HOST`.");
            ExitCode::FAILURE
        }
        None => {
            println!(
                "{} was asked. Nothing is exchanged until its operator accepts; its first ping will \
                 tell.",
                text(&peer["host"])
            );
            ExitCode::SUCCESS
        }
    })
}

/// `peers accept`: shows who asks and what stands there, then asks the operator.
pub(super) async fn accept(args: AcceptArgs) -> Outcome {
    let desk = Desk::new(&args.peering)?;
    let seen = desk.about("peer.inspect").await?;
    if !desk.json {
        show_inspected(&seen);
    }
    if !args.yes && !confirmed(desk.host)? {
        println!("Nothing was changed.");
        return Ok(ExitCode::FAILURE);
    }
    let peer = desk.about("peer.accept").await?;
    if desk.json {
        println!("{peer}");
        return Ok(ExitCode::SUCCESS);
    }
    let host = text(&peer["host"]);
    match peer["lastError"].as_str() {
        None => println!("{host} is {}.", state(&peer)),
        Some(why) => {
            println!(
                "{host} is accepted, but our ping failed: {}",
                printable(why)
            );
            println!(
                "  It is pinged again and again; `drawbridge probe {} {host}` tells more.",
                desk.protocol
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `peers reject` and `peers remove`.
pub(super) async fn end(args: PeeringArgs, method: &str, done: &str) -> Outcome {
    let desk = Desk::new(&args)?;
    let answer = desk.about(method).await?;
    if desk.json {
        println!("{answer}");
    } else {
        println!(
            "{} is {done}. The other side is not told.",
            printable(desk.host)
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Every peering by protocol, where the bridge has any.
pub(super) async fn all(
    admin: &AdminClient,
    protocol: Option<&str>,
) -> Result<Vec<(&'static str, Value)>, AdminError> {
    let mut found = Vec::new();
    for one in PEERING {
        if protocol.is_some_and(|wanted| wanted != one) {
            continue;
        }
        if let Some(Value::Array(peers)) = of(admin, one, "peer.list", &json!({})).await? {
            found.extend(peers.into_iter().map(|peer| (one, peer)));
        }
    }
    Ok(found)
}

/// The peering with one host; `None`: there is none.
pub(super) async fn one(
    admin: &AdminClient,
    protocol: &str,
    host: &str,
) -> Result<Option<Value>, AdminError> {
    if !PEERING.contains(&protocol) {
        return Ok(None);
    }
    of(admin, protocol, "peer.get", &json!({"peer": host})).await
}

/// A method's answer; `None`: the bridge does not speak this protocol, or the peer is not there.
async fn of(
    admin: &AdminClient,
    protocol: &str,
    method: &str,
    body: &Value,
) -> Result<Option<Value>, AdminError> {
    match admin.call(protocol, method, body).await {
        Ok(answer) => Ok(Some(answer)),
        Err(AdminError::Refused {
            status: 404 | 422, ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where it stands: `requested`, `pending`, `connected`, `error`, `rejected`.
pub(super) fn state(peer: &Value) -> String {
    match &peer["state"] {
        Value::Null => text(&peer["status"]),
        state => text(state),
    }
}

/// What a peering is, line by line.
pub(super) fn lines(peer: &Value) -> Vec<String> {
    let direction = match peer["direction"].as_str() {
        Some("outgoing") => "we asked",
        Some("incoming") => "it asked",
        _ => "-",
    };
    let mut lines = vec![
        format!("host        {}", text(&peer["host"])),
        format!("url         {}", text(&peer["url"])),
        format!("name        {}", text(&peer["name"])),
        format!("peering     {} ({direction})", state(peer)),
        format!("last seen   {}", text(&peer["lastSeen"])),
    ];
    if let Some(error) = peer["lastError"].as_str() {
        lines.push(format!("last error  {error}"));
    }
    let features = peer["features"].as_object().map_or(0, Map::len);
    if features > 0 {
        lines.push(format!("features    {}", peer["features"]));
    }
    lines.iter().map(|line| printable(line)).collect()
}

fn show_inspected(seen: &Value) {
    let peer = match &seen["peer"] {
        Value::Null => seen,
        peer => peer,
    };
    for line in lines(peer) {
        println!("  {line}");
    }
    match (&seen["info"], seen["infoError"].as_str()) {
        (Value::Null, why) => println!(
            "  GET /info   {}",
            printable(why.unwrap_or("gave no answer"))
        ),
        (info, _) => {
            println!("  GET /info there says:");
            for (name, value) in info.as_object().into_iter().flatten() {
                println!("    {} = {}", printable(name), printable(&text(value)));
            }
        }
    }
    for warning in seen["warnings"].as_array().into_iter().flatten() {
        println!("  WARNING: {}", printable(&text(warning)));
    }
}

/// Asks on the terminal; without one somebody must have said `--yes`.
fn confirmed(host: &str) -> Result<bool, String> {
    if !std::io::stdin().is_terminal() {
        return Err("there is no terminal to ask on; --yes accepts without asking".to_owned());
    }
    print!("Accept {}? [y/N] ", printable(host));
    // A terminal that is gone answers nothing, which is a no.
    let _ = std::io::stdout().flush();
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|e| format!("the terminal cannot be read: {e}"))?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
