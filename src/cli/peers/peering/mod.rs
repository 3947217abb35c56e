//! `peers add|accept|reject|remove`: peerings that people decide, through the admin API.
//!
//! Before a peering is accepted, its operator sees what the other side said of itself and what stands
//! there: a handshake proves nothing, anybody may claim any host in one, and whoever holds a host may
//! show any key there.

mod words;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::client::{AdminClient, AdminError};
use crate::cli::table::{printable, text};
use crate::cli::{ConfigArgs, Outcome};

use words::{ALL, Words};
pub(super) use words::{last_error, state};

/// Protocols whose peerings a person decides.
pub(super) fn protocols() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|words| words.protocol)
}

/// What a peering over this protocol is, line by line.
pub(super) fn lines(protocol: &str, peer: &Value) -> Vec<String> {
    Words::of(protocol).map_or_else(Vec::new, |words| (words.lines)(peer))
}

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
    /// What we call it; its host if left out (VoltChat).
    #[arg(long)]
    name: Option<String>,
    /// Where it answers, if not at https://HOST.
    #[arg(long)]
    url: Option<String>,
    /// Ask once more under the same secret: it failed before, or the other side has forgotten us
    /// (VoltChat).
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
    /// Only if one of its keys has this fingerprint (Paracord).
    #[arg(long)]
    fingerprint: Option<String>,
}

impl PeeringArgs {
    /// The protocol named, else the one that is meant without a name.
    fn words(&self) -> Result<&'static Words, String> {
        match self.target.as_slice() {
            [protocol, _] => Words::of(protocol).ok_or_else(|| {
                format!(
                    "peers of {protocol:?} are not asked or accepted one by one; that is for {}",
                    protocols().collect::<Vec<_>>().join(", ")
                )
            }),
            _ => Ok(&ALL[0]),
        }
    }

    /// Whether the protocol was named.
    fn is_named(&self) -> bool {
        self.target.len() > 1
    }

    fn host(&self) -> &str {
        self.target.last().map_or("", String::as_str)
    }
}

/// A protocol's methods, about one peer.
struct Desk<'a> {
    admin: AdminClient,
    words: &'static Words,
    host: &'a str,
    json: bool,
}

impl<'a> Desk<'a> {
    /// For one that may be there already: over the protocol named, or the one that knows it.
    async fn of_known(args: &'a PeeringArgs) -> Result<Self, String> {
        let mut desk = Self::new(args)?;
        if !args.is_named() {
            for words in &ALL {
                if one(&desk.admin, words.protocol, desk.host).await?.is_some() {
                    desk.words = words;
                    break;
                }
            }
        }
        Ok(desk)
    }

    fn new(args: &'a PeeringArgs) -> Result<Self, String> {
        Ok(Self {
            admin: AdminClient::from_config(&args.config.load()?)?,
            words: args.words()?,
            host: args.host(),
            json: args.json,
        })
    }

    async fn ask(&self, method: &str, body: &Value) -> Result<Value, AdminError> {
        self.admin.call(self.words.protocol, method, body).await
    }

    async fn about(&self, method: &str) -> Result<Value, AdminError> {
        self.ask(method, &json!({"peer": self.host})).await
    }
}

/// `peers add`: asks another server to peer with us.
pub(super) async fn add(args: AddArgs) -> Outcome {
    let desk = Desk::new(&args.peering)?;
    if desk.words.protocol == "paracord" && (args.again || args.name.is_some()) {
        return Err(
            "over Paracord a server has the name it gives itself; --url says where it answers"
                .into(),
        );
    }
    let peer = match args.again {
        true => desk.about("peer.handshake").await?,
        false => {
            let asked = request(desk.words.protocol, desk.host, &args);
            desk.ask("peer.request", &asked).await?
        }
    };
    if desk.json {
        println!("{peer}");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(match last_error(&peer) {
        Some(why) => {
            let (host, unreached) = (text(&peer["host"]), desk.words.unreached);
            println!("{host} {unreached}:");
            println!("  {}", printable(why));
            match desk.words.protocol {
                "voltchat" => {
                    println!("Once that is mended, ask again: `drawbridge peers add --again HOST`.")
                }
                protocol => {
                    println!("Once that is mended: `drawbridge peers add {protocol} {host}` again.")
                }
            }
            ExitCode::FAILURE
        }
        None => {
            for line in (desk.words.added)(&peer) {
                println!("{line}");
            }
            ExitCode::SUCCESS
        }
    })
}

/// The body of `peer.request`.
fn request(protocol: &str, host: &str, args: &AddArgs) -> Value {
    let mut body = match protocol {
        "paracord" => json!({"name": host}),
        _ => json!({"name": args.name.as_deref().unwrap_or(host), "host": host}),
    };
    if let Some(url) = &args.url {
        body["url"] = url.as_str().into();
    }
    body
}

/// `peers accept`: shows who asks and what stands there, then asks the operator.
pub(super) async fn accept(args: AcceptArgs) -> Outcome {
    let desk = Desk::of_known(&args.peering).await?;
    let seen = desk.about("peer.inspect").await?;
    if !desk.json {
        show_inspected(desk.words, &seen);
    }
    if !args.yes && !confirmed(desk.host)? {
        println!("Nothing was changed.");
        return Ok(ExitCode::FAILURE);
    }
    let mut body = json!({"peer": desk.host});
    if desk.words.protocol == "paracord" {
        // What was shown is what is accepted, whatever the server shows meanwhile.
        let shown = &seen["peer"]["keys"][0]["fingerprint"];
        body["fingerprint"] = args.fingerprint.map_or_else(|| shown.clone(), Value::from);
    }
    let peer = desk.ask("peer.accept", &body).await?;
    if desk.json {
        println!("{peer}");
        return Ok(ExitCode::SUCCESS);
    }
    let host = text(&peer["host"]);
    match last_error(&peer) {
        None => println!("{host} is {}.", state(&peer)),
        Some(why) => {
            println!(
                "{host} is accepted, but {}: {}",
                desk.words.failed,
                printable(why)
            );
            println!(
                "  {}; `drawbridge probe {} {host}` tells more.",
                desk.words.unsettled, desk.words.protocol
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `peers reject` and `peers remove`.
pub(super) async fn end(args: PeeringArgs, method: &str, done: &str) -> Outcome {
    let desk = Desk::of_known(&args).await?;
    let answer = desk.about(method).await?;
    if desk.json {
        println!("{answer}");
    } else {
        println!("{} is {done}. {}", printable(desk.host), desk.words.ended);
    }
    Ok(ExitCode::SUCCESS)
}

/// Every peering by protocol, where the bridge has any.
pub(super) async fn all(
    admin: &AdminClient,
    protocol: Option<&str>,
) -> Result<Vec<(&'static str, Value)>, AdminError> {
    let mut found = Vec::new();
    for one in protocols() {
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
    if Words::of(protocol).is_none() {
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

fn show_inspected(words: &Words, seen: &Value) {
    let peer = match &seen["peer"] {
        Value::Null => seen,
        peer => peer,
    };
    for line in (words.lines)(peer).into_iter().chain((words.seen)(seen)) {
        println!("  {line}");
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
