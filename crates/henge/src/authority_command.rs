//! `henge authority`: another certificate authority for a whole stopped cluster, for when the key of the present one may be
//! known to others.

use base::env::Disk;
use std::process::ExitCode;

use crate::cli::{AuthorityAction, AuthorityInstallArgs, AuthorityMakeArgs};
use crate::env::RealDisk;
use crate::env::net::tls::Authority;
use crate::failure::{Context, Failure};
use crate::private_file;

/// Where the certificate ends and the key begins.
const KEY_BEGINS: &str = "-----BEGIN PRIVATE KEY-----";

pub fn run(action: AuthorityAction) -> Result<ExitCode, Failure> {
    match action {
        AuthorityAction::Make(args) => make(&args)?,
        AuthorityAction::Install(args) => install(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn make(args: &AuthorityMakeArgs) -> Result<(), Failure> {
    let path = &args.file;
    if path.exists() {
        return Err(Failure(format!("{} exists: give the name of a new file", path.display())));
    }
    let authority = Authority::make()?;
    let both = format!("{}{}", authority.certificate_pem, authority.key_pem);
    let absolute = std::path::absolute(path).context(|| format!("{} is no path", path.display()))?;
    private_file::replace(&absolute, both.as_bytes()).context(|| format!("{} cannot be written", path.display()))?;
    println!("{} holds a new certificate authority and its key: whoever has it can be any node", path.display());
    println!("stop all nodes, run `henge authority install` on each, start them; then destroy the file");
    Ok(())
}

fn install(args: &AuthorityInstallArgs) -> Result<(), Failure> {
    let path = &args.file;
    let text = private_file::read(path).context(|| format!("{} cannot be read", path.display()))?;
    let text = text.ok_or_else(|| Failure(format!("{} does not exist", path.display())))?;
    let at = text.find(KEY_BEGINS).ok_or_else(|| Failure(format!("{} holds no private key", path.display())))?;
    let (certificate_pem, key_pem) = text.split_at(at);
    let authority = Authority { certificate_pem: certificate_pem.into(), key_pem: key_pem.into() };
    authority.check().context(|| format!("{} holds no usable certificate authority", path.display()))?;
    if !args.data.join("node").is_file() {
        return Err(Failure(format!("{} is no directory of a node", args.data.display())));
    }
    let data = RealDisk::open_or_create(&args.data).context(|| format!("{} cannot be opened", args.data.display()))?;
    let _lock =
        data.lock().map_err(|error| Failure(format!("{}: {error}: stop the node first", args.data.display())))?;
    authority.store(&args.data)?;
    println!("{} has the new certificate authority: a node that has another cannot talk to it", args.data.display());
    Ok(())
}
