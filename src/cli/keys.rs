//! `pageferry keys`: certificates for hosts that have none.
//!
//! Each host gets a directory to copy there, with all that it needs to send and to receive. The CA's key stays behind;
//! who has it can make more. Nothing that exists is ever overwritten.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::ServerName;

use super::units::number_in;

/// Make a CA and certificates for hosts
#[derive(Clone, Debug, clap::Args)]
pub struct KeysArgs {
    /// Where to put them: a directory that is made, or that has none yet
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// A host, by all names and addresses that guests are sent to it by; once for each host
    #[arg(long = "host", value_name = "NAME|IP,...", required = true, value_parser = parse_host)]
    hosts: Vec<Host>,
    /// How many days they are good for
    #[arg(long, value_name = "N", default_value = "365", value_parser = number_in(1..=MAX_DAYS))]
    days: u32,
}

/// What a host is called: one or more names and addresses, each fit for a certificate and for the name of a file.
#[derive(Clone, Debug)]
struct Host(Vec<String>);

/// A file to be made.
struct Made {
    path: PathBuf,
    pem: String,
    mode: u32,
}

/// Makes them and says what to do with them.
///
/// # Errors
/// When something is in the way, or cannot be written. What was written until then stays.
pub fn run(args: &KeysArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let KeysArgs { directory, hosts, days } = args;
    let mut names: Vec<&str> = hosts.iter().map(Host::name).collect();
    names.sort_unstable();
    ensure!(names.windows(2).all(|pair| pair[0] != pair[1]), "--host: the same name twice");
    let files = make(directory, hosts, *days)?;
    if let Some(there) = files.iter().map(|file| &file.path).find(|path| path.symlink_metadata().is_ok()) {
        bail!("{} exists and is not overwritten: choose another directory", there.display());
    }
    for file in &files {
        file.write()?;
    }
    writeln!(out, "made a CA and certificates for {}, good for {days} days", names.join(", "))?;
    writeln!(out, "copy each directory to its host, and keep {} to yourself:", directory.join(CA_KEY).display())?;
    for host in hosts {
        writeln!(out, "  scp -rp {} {}:", directory.join(host.name()).display(), host.name())?;
    }
    if let [from, .., to] = hosts.as_slice() {
        writeln!(out, "then, on {}:  pageferry-receive --listen 0.0.0.0:7000 --tls {}", to.name(), to.name())?;
        writeln!(out, "and on {}:    pageferry-send --to {}:7000 --tls {} ...", from.name(), to.bracketed(), from.name())?;
    }
    Ok(())
}

/// All files, in memory.
fn make(directory: &Path, hosts: &[Host], days: u32) -> anyhow::Result<Vec<Made>> {
    let now = SystemTime::now();
    let mut validity = CertificateParams::default();
    // The other host's clock may be behind.
    validity.not_before = (now - DAY).into();
    validity.not_after = (now + DAY * days).into();
    let ca_key = KeyPair::generate()?;
    let mut ca = validity.clone();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // A name of its own: two CAs of one name are told apart only by wrong signatures.
    let number: String = ca_key.public_key_raw().iter().rev().take(4).map(|byte| format!("{byte:02x}")).collect();
    ca.distinguished_name = named(&format!("pageferry CA {number}"));
    let ca_pem = ca.self_signed(&ca_key)?.pem();
    let ca_key_pem = ca_key.serialize_pem();
    let ca = Issuer::new(ca, ca_key);

    let mut files = vec![Made::secret(directory.join(CA_KEY), ca_key_pem), Made::public(directory.join(CA), ca_pem.clone())];
    for host in hosts {
        let folder = directory.join(host.name());
        files.push(Made::public(folder.join(CA), ca_pem.clone()));
        for (role, purpose) in [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)] {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(host.0.clone())?;
            (params.not_before, params.not_after) = (validity.not_before, validity.not_after);
            params.distinguished_name = named(host.name());
            params.use_authority_key_identifier_extension = true;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![purpose];
            let certificate = params.signed_by(&key, &ca)?;
            files.push(Made::public(folder.join(format!("{role}-cert.pem")), certificate.pem()));
            files.push(Made::secret(folder.join(format!("{role}-key.pem")), key.serialize_pem()));
        }
    }
    Ok(files)
}

impl Made {
    fn secret(path: PathBuf, pem: String) -> Self {
        Self { path, pem, mode: 0o600 }
    }

    fn public(path: PathBuf, pem: String) -> Self {
        Self { path, pem, mode: 0o644 }
    }

    fn write(&self) -> anyhow::Result<()> {
        let cannot = || format!("{} cannot be written", self.path.display());
        let folder = self.path.parent().expect("a file in a directory");
        if !folder.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(cannot)?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(self.mode).open(&self.path).with_context(cannot)?;
        file.write_all(self.pem.as_bytes()).with_context(cannot)?;
        // The umask may have taken the right to read certificates away from others, which harms nobody.
        Ok(())
    }
}

impl Host {
    /// The first name: the directory's.
    fn name(&self) -> &str {
        &self.0[0]
    }

    /// As an address needs it.
    fn bracketed(&self) -> String {
        if self.name().contains(':') { format!("[{}]", self.name()) } else { self.name().to_owned() }
    }
}

fn parse_host(text: &str) -> Result<Host, String> {
    let names: Vec<String> = text.split(',').map(str::to_owned).collect();
    match names.iter().find(|name| ServerName::try_from(name.as_str()).is_err()) {
        Some(wrong) => Err(format!("{wrong:?} is no host name or address")),
        None => Ok(Host(names)),
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

const CA: &str = "ca-cert.pem";
const CA_KEY: &str = "ca-key.pem";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// A hundred years.
const MAX_DAYS: u32 = 36_500;
