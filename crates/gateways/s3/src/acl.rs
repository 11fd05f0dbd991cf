//! Access control lists: who owns a bucket or an object, and what it grants to others.
//!
//! They are kept beside what they guard, as text: the owner, then a line for each grant. Nothing kept means that all
//! is the owner's alone. With `BucketOwnerEnforced` lists mean nothing and cannot be set.
//!
//! Source: "Access control list (ACL) overview", Amazon S3 User Guide.

use crate::encoding::{percent_decode, percent_encode_into};
use crate::error::{Code, Result, S3Error};
use crate::names;
use crate::request::malformed_xml;
use crate::xml::{Element, Writer};
use client::{BucketInfo, ConfigurationKind, ObjectVersion, Upload};
use http::HeaderMap;

/// The most grants in one list, as in S3.
const GRANTS_MAX: usize = 100;

const ALL_USERS: &str = "http://acs.amazonaws.com/groups/global/AllUsers";
const AUTHENTICATED_USERS: &str = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers";
const LOG_DELIVERY: &str = "http://acs.amazonaws.com/groups/s3/LogDelivery";

/// What a grant allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permission {
    FullControl,
    Read,
    Write,
    ReadAcp,
    WriteAcp,
}

impl Permission {
    /// With the header that grants it.
    const ALL: [(Permission, &'static str, &'static str); 5] = [
        (Permission::FullControl, "FULL_CONTROL", "x-amz-grant-full-control"),
        (Permission::Read, "READ", "x-amz-grant-read"),
        (Permission::Write, "WRITE", "x-amz-grant-write"),
        (Permission::ReadAcp, "READ_ACP", "x-amz-grant-read-acp"),
        (Permission::WriteAcp, "WRITE_ACP", "x-amz-grant-write-acp"),
    ];

    fn as_str(self) -> &'static str {
        Permission::ALL.iter().find(|(permission, ..)| *permission == self).expect("ALL has every permission").1
    }

    fn read(text: &str) -> Option<Permission> {
        Permission::ALL.iter().find(|(_, name, _)| *name == text).map(|(permission, ..)| *permission)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Grantee {
    /// The access key that is the user's id.
    User(String),
    AllUsers,
    AuthenticatedUsers,
    LogDelivery,
}

impl Grantee {
    fn group(uri: &str) -> Option<Grantee> {
        match uri {
            ALL_USERS => Some(Grantee::AllUsers),
            AUTHENTICATED_USERS => Some(Grantee::AuthenticatedUsers),
            LOG_DELIVERY => Some(Grantee::LogDelivery),
            _ => None,
        }
    }

    fn uri(&self) -> Option<&'static str> {
        match self {
            Grantee::User(_) => None,
            Grantee::AllUsers => Some(ALL_USERS),
            Grantee::AuthenticatedUsers => Some(AUTHENTICATED_USERS),
            Grantee::LogDelivery => Some(LOG_DELIVERY),
        }
    }

    fn is(&self, caller: &str) -> bool {
        match self {
            Grantee::User(id) => !caller.is_empty() && id == caller,
            Grantee::AllUsers => true,
            Grantee::AuthenticatedUsers => !caller.is_empty(),
            Grantee::LogDelivery => false,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    pub grantee: Grantee,
    pub permission: Permission,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl {
    /// Access key of the owner.
    pub owner: String,
    pub grants: Vec<Grant>,
}

/// What a list is of: the canned lists differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Bucket,
    Object,
}

impl Acl {
    /// All to the owner, nothing to others.
    pub fn private(owner: &str) -> Acl {
        Acl { owner: owner.to_owned(), grants: vec![full_control(owner)] }
    }

    pub fn of_bucket(bucket: &BucketInfo) -> Acl {
        let kept = bucket.configuration(ConfigurationKind::Acl).filter(|_| !is_enforced(bucket));
        let Some(kept) = kept else { return Acl::private(&bucket.owner) };
        let text = std::str::from_utf8(&kept.value).unwrap_or_default();
        // A list that cannot be read grants nothing to others.
        Acl::decode(text).unwrap_or_else(|| Acl::private(&bucket.owner))
    }

    pub fn of_object(bucket: &BucketInfo, object: &ObjectVersion) -> Acl {
        let kept = object.attributes.as_ref().map_or("", |attributes| attributes.acl.as_str());
        if kept.is_empty() || is_enforced(bucket) {
            return Acl::private(&bucket.owner);
        }
        Acl::decode(kept).unwrap_or_else(|| Acl::private(&bucket.owner))
    }

    /// Of the object that an upload will become.
    pub fn of_upload(bucket: &BucketInfo, upload: &Upload) -> Acl {
        let attributes = upload.attributes.clone();
        Acl::of_object(bucket, &ObjectVersion { attributes, ..ObjectVersion::default() })
    }

    /// Whether `caller` (an access key, or empty for nobody in particular) may do this. The owner may always.
    pub fn allows(&self, caller: &str, wanted: Permission) -> bool {
        let covers = |permission| permission == wanted || permission == Permission::FullControl;
        (!caller.is_empty() && caller == self.owner)
            || self.grants.iter().any(|grant| covers(grant.permission) && grant.grantee.is(caller))
    }

    /// Whether it grants something to users at large.
    pub fn is_public(&self) -> bool {
        self.grants.iter().any(|grant| matches!(grant.grantee, Grantee::AllUsers | Grantee::AuthenticatedUsers))
    }

    /// The list without what it grants to users at large.
    pub fn without_public(mut self) -> Acl {
        self.grants.retain(|grant| matches!(grant.grantee, Grantee::User(_)));
        self
    }

    /// As it is kept; empty when that says the same.
    pub fn encode(&self, bucket_owner: &str) -> String {
        if *self == Acl::private(bucket_owner) {
            return String::new();
        }
        let mut out = String::from("=");
        percent_encode_into(&mut out, self.owner.as_bytes(), false);
        for grant in &self.grants {
            out.push('\n');
            out.push_str(grant.permission.as_str());
            out.push(' ');
            match &grant.grantee {
                Grantee::User(id) => {
                    out.push('=');
                    percent_encode_into(&mut out, id.as_bytes(), false);
                }
                Grantee::AllUsers => out.push('*'),
                Grantee::AuthenticatedUsers => out.push('+'),
                Grantee::LogDelivery => out.push('l'),
            }
        }
        out
    }

    fn decode(text: &str) -> Option<Acl> {
        let mut lines = text.split('\n');
        let id = |text: &str| percent_decode(text, false).and_then(|id| String::from_utf8(id).ok());
        let owner = id(lines.next()?.strip_prefix('=')?)?;
        let grant = |line: &str| {
            let (permission, grantee) = line.split_once(' ')?;
            let grantee = match grantee {
                "*" => Grantee::AllUsers,
                "+" => Grantee::AuthenticatedUsers,
                "l" => Grantee::LogDelivery,
                user => Grantee::User(id(user.strip_prefix('=')?)?),
            };
            Some(Grant { grantee, permission: Permission::read(permission)? })
        };
        Some(Acl { owner, grants: lines.map(grant).collect::<Option<_>>()? })
    }

    /// A list by its name.
    fn canned(name: &str, kind: Kind, owner: &str, bucket_owner: &str) -> Option<Acl> {
        use Grantee::{AllUsers, AuthenticatedUsers, LogDelivery};
        use Permission::{FullControl, Read, ReadAcp, Write};
        let to_owner = |permission| (Grantee::User(bucket_owner.to_owned()), permission);
        let to_others = match name {
            "private" => vec![],
            "public-read" => vec![(AllUsers, Read)],
            "public-read-write" => vec![(AllUsers, Read), (AllUsers, Write)],
            "authenticated-read" => vec![(AuthenticatedUsers, Read)],
            "log-delivery-write" if kind == Kind::Bucket => vec![(LogDelivery, Write), (LogDelivery, ReadAcp)],
            // In the calls that concern a bucket S3 ignores these two.
            "bucket-owner-read" | "bucket-owner-full-control" if kind == Kind::Bucket || owner == bucket_owner => {
                vec![]
            }
            "bucket-owner-read" => vec![to_owner(Read)],
            "bucket-owner-full-control" => vec![to_owner(FullControl)],
            _ => return None,
        };
        let mut grants: Vec<Grant> =
            to_others.into_iter().map(|(grantee, permission)| Grant { grantee, permission }).collect();
        grants.push(full_control(owner));
        Some(Acl { owner: owner.to_owned(), grants })
    }

    /// The list that `x-amz-acl` or `x-amz-grant-*` ask for; `None` when they ask for none.
    pub fn of_headers(headers: &HeaderMap, kind: Kind, owner: &str, bucket_owner: &str) -> Result<Option<Acl>> {
        let named = headers.get(names::ACL).map(|value| value.as_bytes()).filter(|name| !name.is_empty());
        let mut grants = Vec::new();
        for (permission, _, header) in Permission::ALL {
            let Some(value) = headers.get(header) else { continue };
            let text = value.to_str().map_err(|_| invalid(format!("The header {header} is not ASCII.")))?;
            for grantee in text.split(',').map(str::trim).filter(|grantee| !grantee.is_empty()) {
                grants.push(Grant { grantee: header_grantee(header, grantee)?, permission });
            }
        }
        if grants.len() > GRANTS_MAX {
            return Err(invalid(format!("An access control list has at most {GRANTS_MAX} grants.")));
        }
        match named {
            None if grants.is_empty() => Ok(None),
            None => Ok(Some(Acl { owner: owner.to_owned(), grants })),
            Some(_) if !grants.is_empty() => {
                Err(S3Error::new(Code::InvalidRequest, "Specifying both Canned ACLs and Header Grants is not allowed."))
            }
            Some(name) => {
                let name = String::from_utf8_lossy(name);
                let acl = Acl::canned(&name, kind, owner, bucket_owner);
                acl.map(Some).ok_or_else(|| invalid(format!("The canned ACL {name:?} is not known.")))
            }
        }
    }

    /// The `AccessControlPolicy` of a request. `owner`: the present one, who stays.
    pub fn read(policy: &Element, owner: &str) -> Result<Acl> {
        let named = policy.child("Owner").and_then(|named| named.child_text("ID"));
        if named.is_some_and(|named| named != owner) {
            return Err(S3Error::new(Code::AccessDenied, "The owner of a bucket or object cannot be changed."));
        }
        let list = policy.child("AccessControlList").ok_or_else(|| malformed_xml("it has no AccessControlList"))?;
        if list.children.len() > GRANTS_MAX {
            return Err(malformed_xml("it has more than 100 grants"));
        }
        let mut grants = list.all("Grant").map(read_grant).collect::<Result<Vec<Grant>>>()?;
        // Groups first, as canned lists have them.
        grants.sort_by_key(|grant| matches!(grant.grantee, Grantee::User(_)));
        Ok(Acl { owner: owner.to_owned(), grants })
    }

    pub fn write(&self, xml: &mut Writer) {
        crate::ops::write_owner(xml, "Owner", &self.owner);
        xml.element("AccessControlList", |xml| {
            for grant in &self.grants {
                xml.element("Grant", |xml| {
                    write_grantee(xml, &grant.grantee);
                    xml.text("Permission", grant.permission.as_str());
                });
            }
        });
    }

    /// The users that it names: they must exist.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.grants.iter().filter_map(|grant| match &grant.grantee {
            Grantee::User(id) => Some(id.as_str()),
            _ => None,
        })
    }
}

/// Whose the objects are that others write into a bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ownership {
    /// The bucket's owner's, always; lists are switched off.
    BucketOwnerEnforced,
    /// The bucket's owner's when the writer says `bucket-owner-full-control`, else the writer's.
    BucketOwnerPreferred,
    /// The writer's. (Buckets without the setting.)
    ObjectWriter,
}

impl Ownership {
    pub fn read(text: &str) -> Option<Ownership> {
        match text {
            "BucketOwnerEnforced" => Some(Ownership::BucketOwnerEnforced),
            "BucketOwnerPreferred" => Some(Ownership::BucketOwnerPreferred),
            "ObjectWriter" => Some(Ownership::ObjectWriter),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Ownership::BucketOwnerEnforced => "BucketOwnerEnforced",
            Ownership::BucketOwnerPreferred => "BucketOwnerPreferred",
            Ownership::ObjectWriter => "ObjectWriter",
        }
    }

    pub fn of(bucket: &BucketInfo) -> Ownership {
        let kept = bucket.configuration(ConfigurationKind::Ownership);
        let read = |value: &[u8]| Ownership::read(std::str::from_utf8(value).ok()?);
        match kept {
            // What cannot be read grants nothing.
            Some(kept) => read(&kept.value).unwrap_or(Ownership::BucketOwnerEnforced),
            None => Ownership::ObjectWriter,
        }
    }
}

fn is_enforced(bucket: &BucketInfo) -> bool {
    Ownership::of(bucket) == Ownership::BucketOwnerEnforced
}

/// The list of an object that `writer` writes into `bucket`, as it is kept. An anonymous writer's objects are the
/// bucket owner's.
pub fn of_new_object(headers: &HeaderMap, bucket: &BucketInfo, writer: &str) -> Result<Acl> {
    let ownership = Ownership::of(bucket);
    let gives_away = headers.get(names::ACL).is_some_and(|name| name == "bucket-owner-full-control");
    let owner = match ownership {
        Ownership::BucketOwnerEnforced => &bucket.owner,
        Ownership::BucketOwnerPreferred if gives_away => &bucket.owner,
        _ if writer.is_empty() => &bucket.owner,
        _ => writer,
    };
    let asked = Acl::of_headers(headers, Kind::Object, owner, &bucket.owner)?;
    if ownership == Ownership::BucketOwnerEnforced && asked.is_some() && !gives_away {
        return Err(not_supported());
    }
    Ok(asked.unwrap_or_else(|| Acl::private(owner)))
}

/// Refuses to change a list in a bucket whose lists are switched off.
pub fn check_settable(bucket: &BucketInfo) -> Result<()> {
    if is_enforced(bucket) { Err(not_supported()) } else { Ok(()) }
}

fn not_supported() -> S3Error {
    S3Error::new(Code::AccessControlListNotSupported, "The bucket does not allow ACLs.")
}

fn full_control(owner: &str) -> Grant {
    Grant { grantee: Grantee::User(owner.to_owned()), permission: Permission::FullControl }
}

fn invalid(message: String) -> S3Error {
    S3Error::new(Code::InvalidArgument, message)
}

/// `id="..."`, `uri="..."` or `emailAddress="..."`.
fn header_grantee(header: &str, text: &str) -> Result<Grantee> {
    let (kind, value) =
        text.split_once('=').ok_or_else(|| invalid(format!("Argument format not recognized: {header}.")))?;
    let value = value.trim().trim_matches('"');
    grantee(kind.trim(), value)
}

fn grantee(kind: &str, value: &str) -> Result<Grantee> {
    match kind {
        "id" if !value.is_empty() => Ok(Grantee::User(value.to_owned())),
        "uri" => Grantee::group(value).ok_or_else(|| invalid("Invalid group uri.".to_owned())),
        "emailAddress" => Err(S3Error::new(
            Code::UnresolvableGrantByEmailAddress,
            "The e-mail address you provided does not match any account: users have access keys, not addresses.",
        )),
        _ => Err(invalid("A grantee has an id or a uri.".to_owned())),
    }
}

fn read_grant(grant: &Element) -> Result<Grant> {
    let named = grant.child("Grantee").ok_or_else(|| malformed_xml("a grant has no grantee"))?;
    let child = |name: &'static str| named.child_text(name).filter(|text| !text.is_empty());
    let grantee = match (child("ID"), child("URI"), child("EmailAddress")) {
        (Some(id), None, None) => grantee("id", id)?,
        (None, Some(uri), None) => grantee("uri", uri)?,
        (None, None, Some(address)) => grantee("emailAddress", address)?,
        _ => return Err(malformed_xml("a grantee has an id, a uri or an e-mail address")),
    };
    let permission = grant.child_text("Permission").and_then(Permission::read);
    Ok(Grant { grantee, permission: permission.ok_or_else(|| malformed_xml("a grant has no valid permission"))? })
}

fn write_grantee(xml: &mut Writer, grantee: &Grantee) {
    let open = |kind| format!("<Grantee xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"{kind}\">");
    match grantee {
        Grantee::User(id) => {
            xml.raw(&open("CanonicalUser"));
            xml.text("ID", id);
            xml.text("DisplayName", id);
        }
        group => {
            xml.raw(&open("Group"));
            xml.text("URI", group.uri().unwrap_or_default());
        }
    }
    xml.raw("</Grantee>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    fn of(pairs: &[(&'static str, &str)]) -> std::result::Result<Option<Acl>, Code> {
        Acl::of_headers(&headers(pairs), Kind::Object, "me", "boss").map_err(|error| error.code)
    }

    fn any_grant() -> impl Strategy<Value = Grant> {
        let grantee = prop_oneof![
            any::<String>().prop_map(Grantee::User),
            Just(Grantee::AllUsers),
            Just(Grantee::AuthenticatedUsers),
            Just(Grantee::LogDelivery),
        ];
        (grantee, 0usize..5).prop_map(|(grantee, at)| Grant { grantee, permission: Permission::ALL[at].0 })
    }

    proptest! {
        #[test]
        fn lists_round_trip(owner: String, grants in proptest::collection::vec(any_grant(), 0..5)) {
            let acl = Acl { owner, grants };
            let text = acl.encode("bucket owner");
            prop_assert_eq!(if text.is_empty() { Some(Acl::private("bucket owner")) } else { Acl::decode(&text) }, Some(acl));
        }

        #[test]
        fn garbage_never_panics(text: String) {
            let _ = Acl::decode(&text);
        }
    }

    #[test]
    fn canned_lists_grant_what_their_names_say() {
        let allows = |name: &str, caller: &str, permission| {
            of(&[("x-amz-acl", name)]).unwrap().unwrap().allows(caller, permission)
        };
        use Permission::{Read, ReadAcp, Write, WriteAcp};
        for (name, caller, allowed, denied) in [
            ("private", "you", vec![], vec![Read, Write, ReadAcp, WriteAcp]),
            ("private", "me", vec![Read, Write, ReadAcp, WriteAcp], vec![]),
            ("public-read", "", vec![Read], vec![Write, ReadAcp, WriteAcp]),
            ("public-read-write", "", vec![Read, Write], vec![ReadAcp, WriteAcp]),
            ("authenticated-read", "", vec![], vec![Read]),
            ("authenticated-read", "you", vec![Read], vec![Write]),
            ("bucket-owner-read", "boss", vec![Read], vec![ReadAcp]),
            ("bucket-owner-full-control", "boss", vec![Read, WriteAcp], vec![]),
            ("bucket-owner-full-control", "you", vec![], vec![Read]),
        ] {
            assert!(allowed.iter().all(|permission| allows(name, caller, *permission)), "{name} {caller}");
            assert!(!denied.iter().any(|permission| allows(name, caller, *permission)), "{name} {caller}");
        }
        assert_eq!(of(&[("x-amz-acl", "public-ready")]), Err(Code::InvalidArgument));
        assert_eq!(of(&[]), Ok(None));
    }

    #[test]
    fn headers_grant_to_users_and_groups() {
        let acl = of(&[("x-amz-grant-read", "id=\"you\", uri=\"http://acs.amazonaws.com/groups/global/AllUsers\"")]);
        let acl = acl.unwrap().unwrap();
        assert_eq!(acl.users().collect::<Vec<_>>(), ["you"]);
        assert!(acl.is_public() && acl.allows("", Permission::Read) && !acl.allows("you", Permission::Write));
        for (value, code) in [
            ("you", Code::InvalidArgument),
            ("uri=\"http://example.com\"", Code::InvalidArgument),
            ("emailAddress=\"a@b\"", Code::UnresolvableGrantByEmailAddress),
        ] {
            assert_eq!(of(&[("x-amz-grant-write", value)]), Err(code), "{value}");
        }
        assert_eq!(of(&[("x-amz-acl", "private"), ("x-amz-grant-read", "id=a")]), Err(Code::InvalidRequest));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let acl = of(&[("x-amz-acl", "public-read-write")]).unwrap().unwrap();
        let document = Writer::answer("AccessControlPolicy", |xml| acl.write(xml));
        let read = |owner| Acl::read(&crate::xml::read(document.as_bytes()).unwrap(), owner);
        assert_eq!(read("me").unwrap(), acl);
        assert_eq!(read("you").unwrap_err().code, Code::AccessDenied, "nobody becomes the owner by saying so");
    }

    #[test]
    fn an_empty_list_leaves_the_owner_in_charge() {
        let acl = Acl { owner: "me".to_owned(), grants: vec![] };
        assert!(acl.allows("me", Permission::WriteAcp) && !acl.allows("", Permission::Read));
        assert_eq!(Acl::decode(&acl.encode("boss")).unwrap(), acl);
        let nobody = Acl { owner: String::new(), grants: vec![] };
        assert!(!nobody.allows("", Permission::Read), "no name is not a name");
    }
}
