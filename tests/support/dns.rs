//! A name server for tests: answers A, AAAA and SRV from a table over UDP on loopback, and can fail
//! on purpose. Written by hand, so that the resolver under test does not check itself.

#![allow(dead_code)]

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a name answers.
#[derive(Clone, Debug)]
pub enum Zone {
    A(Vec<Ipv4Addr>),
    Aaaa(Vec<Ipv6Addr>),
    /// (priority, weight, port, target)
    Srv(Vec<(u16, u16, u16, &'static str)>),
    ServFail,
    /// No answer at all.
    Silent,
}

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;

/// A running name server; stops when dropped.
pub struct DnsStub {
    address: SocketAddr,
    table: Arc<Mutex<HashMap<String, Vec<Zone>>>>,
    queries: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl DnsStub {
    /// Starts with these names (lower case, no dot at the end); every other name is NXDOMAIN.
    pub fn start(names: &[(&str, Zone)]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let mut stub = Self {
            address: socket.local_addr().unwrap(),
            table: Arc::default(),
            queries: Arc::default(),
            stop: Arc::default(),
            thread: None,
        };
        for (name, zone) in names {
            stub.add(name, zone.clone());
        }
        let (table, queries, stop) = (
            Arc::clone(&stub.table),
            Arc::clone(&stub.queries),
            Arc::clone(&stub.stop),
        );
        let thread = std::thread::spawn(move || {
            let mut buffer = [0u8; 1500];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                queries.fetch_add(1, Ordering::Relaxed);
                if let Some(answer) = answer(&buffer[..length], &table.lock().unwrap()) {
                    socket.send_to(&answer, from).unwrap();
                }
            }
        });
        stub.thread = Some(thread);
        stub
    }

    /// Adds what a name answers.
    pub fn add(&self, name: &str, zone: Zone) {
        let mut table = self.table.lock().unwrap();
        table.entry(name.to_owned()).or_default().push(zone);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Questions so far.
    pub fn queries(&self) -> usize {
        self.queries.load(Ordering::Relaxed)
    }
}

impl Drop for DnsStub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn answer(query: &[u8], table: &HashMap<String, Vec<Zone>>) -> Option<Vec<u8>> {
    let (name, after_name) = read_name(query, 12)?;
    let kind = u16::from_be_bytes([*query.get(after_name)?, *query.get(after_name + 1)?]);
    let question = &query[12..after_name + 4];
    let zones = table.get(&name.to_ascii_lowercase());
    if zones.is_some_and(|z| z.iter().any(|z| matches!(z, Zone::Silent))) {
        return None;
    }
    let mut records = Vec::new();
    let mut code = if zones.is_some() { 0u8 } else { 3 };
    for zone in zones.into_iter().flatten() {
        match zone {
            Zone::A(list) if kind == A => {
                records.extend(list.iter().map(|ip| record(A, &ip.octets())));
            }
            Zone::Aaaa(list) if kind == AAAA => {
                records.extend(list.iter().map(|ip| record(AAAA, &ip.octets())));
            }
            Zone::Srv(list) if kind == SRV => {
                for (priority, weight, port, target) in list {
                    let mut data = Vec::new();
                    data.extend(priority.to_be_bytes());
                    data.extend(weight.to_be_bytes());
                    data.extend(port.to_be_bytes());
                    data.extend(write_name(target));
                    records.push(record(SRV, &data));
                }
            }
            Zone::ServFail => code = 2,
            _ => {}
        }
    }
    let mut answer = Vec::new();
    answer.extend(&query[..2]);
    answer.extend([0x81, 0x80 | code]);
    answer.extend(1u16.to_be_bytes());
    answer.extend(u16::try_from(records.len()).unwrap().to_be_bytes());
    answer.extend([0; 4]);
    answer.extend(question);
    answer.extend(records.concat());
    Some(answer)
}

fn record(kind: u16, data: &[u8]) -> Vec<u8> {
    let mut out = vec![0xc0, 12];
    out.extend(kind.to_be_bytes());
    out.extend(1u16.to_be_bytes());
    out.extend(60u32.to_be_bytes());
    out.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    out.extend(data);
    out
}

fn read_name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        let label = message.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).into_owned());
        at += length;
    }
}

fn write_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|l| !l.is_empty()) {
        out.push(u8::try_from(label.len()).unwrap());
        out.extend(label.as_bytes());
    }
    out.push(0);
    out
}
