//! Amounts as people write them.

/// `4096`, `4KiB`, `200 MiB`, `1.5G`: K, M, G and T with or without `i` and `B` are powers of 1024, except `kB`,
/// `MB`, `GB` and `TB`, which are powers of 1000.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim());
    let unit_bytes: u64 = match unit {
        "" | "B" => 1,
        "K" | "k" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(format!("{unit:?} is no unit of bytes; use for example 4KiB, 200MiB or 1GiB")),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit_bytes).ok_or_else(|| "that is too many bytes".into());
    }
    let number: f64 = number.parse().map_err(|_| "use for example 4096, 4KiB, 200MiB or 1GiB".to_owned())?;
    let bytes = number * unit_bytes as f64;
    if bytes < 9e18 { Ok(bytes as u64) } else { Err("that is too many bytes".into()) }
}

/// A positive number of seconds, at most a day.
pub fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.strip_suffix('s').unwrap_or(text).parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(seconds),
        _ => Err("expected a number of seconds above 0, at most 86400".into()),
    }
}

/// `90s`, `30m`, `1h`, `7d`: at least a second, at most a year.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    const YEAR_SECONDS: u64 = 365 * 86_400;
    let expected = || "expected a time such as 90s, 30m, 1h or 7d, at most 365d".to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit_seconds = match &text[split..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(expected()),
    };
    let number: u64 = text[..split].parse().map_err(|_| expected())?;
    let seconds = number.checked_mul(unit_seconds).filter(|seconds| (1..=YEAR_SECONDS).contains(seconds));
    seconds.map(std::time::Duration::from_secs).ok_or_else(expected)
}

/// For people: three digits and a binary unit.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// For people: `42 s`, `3 min`, `2.5 h`.
pub fn show_seconds(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_shown() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("4KiB", 4096), ("1.5G", 3 << 29), ("2 MB", 2_000_000), ("1T", 1 << 40)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "x", "4XB", "-1", "99999999999T", "1e30", "1.2.3"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        assert_eq!(show_bytes(4096), "4.0 KiB");
        assert_eq!(show_bytes(200 << 20), "200 MiB");
        assert_eq!(parse_seconds("2.5"), Ok(2.5));
        assert!(parse_seconds("0").is_err() && parse_seconds("inf").is_err());
    }
}
