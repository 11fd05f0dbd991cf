//! Values that arguments have, in the words in which people write them.

use protocol::membership::VOTERS;

use super::DiskArg;
use crate::units::parse_bytes;

/// `DIR` or `DIR=SIZE`. A directory with `=` in its name needs the size.
pub(super) fn parse_disk(text: &str) -> Result<DiskArg, String> {
    let (directory, size) = match text.rsplit_once('=') {
        None => (text, None),
        Some((directory, size)) => (directory, Some(parse_bytes(size)?)),
    };
    if directory.is_empty() {
        return Err("the directory is missing".into());
    }
    Ok(DiskArg { directory: directory.into(), size_bytes_max: size })
}

pub(super) fn parse_copies(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(0..=1) => Err("with fewer than 2 copies, every lost disk is lost data".into()),
        Ok(copies) if copies as usize > VOTERS => {
            Err(format!("at most {VOTERS}: as many as the metadata has, without which copies are of no use"))
        }
        Ok(copies) => Ok(copies),
        Err(_) => Err(format!("expected a number from 2 to {VOTERS}")),
    }
}

pub(super) fn parse_host_port(text: &str) -> Result<String, String> {
    let valid = text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if valid { Ok(text.to_owned()) } else { Err("expected HOST:PORT".into()) }
}

pub(super) fn parse_locality(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 3] = ["region", "zone", "rack"];
    let mut next = 0;
    for pair in text.split(',').filter(|_| !text.is_empty()) {
        let (level, name) = pair.split_once('=').ok_or("expected region=R,zone=Z,rack=K")?;
        let found = LEVELS.iter().position(|known| *known == level).ok_or("the levels are region, zone and rack")?;
        if found < next {
            return Err("name each level once, in the order region, zone, rack".into());
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(format!("the name of the {level} must consist of letters, digits, '-', '_' and '.'"));
        }
        next = found + 1;
    }
    Ok(text.to_owned())
}
