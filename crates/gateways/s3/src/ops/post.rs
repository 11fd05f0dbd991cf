//! A browser's upload: a PUT whose words came as a form.

use super::Gateway;
use crate::encoding::{percent_encode_into, percent_encode_path};
use crate::error::Result;
use crate::form::Success;
use crate::payload::Payload;
use crate::request::{Reply, Request, insert, quoted, xml_reply};
use crate::xml::Writer;
use http::StatusCode;
use http::header::{CONTENT_TYPE, ETAG, LOCATION};

pub async fn object(gateway: &Gateway, request: &Request, payload: Payload) -> Result<Reply> {
    let mut reply = super::object::put(gateway, request, payload).await?;
    let etag = reply.headers().get(ETAG).and_then(|etag| etag.to_str().ok()).unwrap_or_default().to_owned();
    let target = &request.target;
    let place = format!("/{}/{}", target.bucket, percent_encode_path(&target.key));
    match request.success.as_ref().unwrap_or(&Success::Status(204)) {
        Success::Status(status) => {
            *reply.status_mut() = StatusCode::from_u16(*status).unwrap_or(StatusCode::NO_CONTENT);
            insert(&mut reply, LOCATION, &place);
        }
        Success::Document => {
            // The one answer of S3 without a name space.
            let mut xml = Writer::document();
            xml.element("PostResponse", |xml| {
                xml.text("Location", &place);
                xml.text("Bucket", &target.bucket);
                xml.text("Key", target.key_text());
                xml.text("ETag", &etag);
            });
            let (parts, body) = xml_reply(xml.finish()).into_parts();
            *reply.body_mut() = body;
            *reply.status_mut() = StatusCode::CREATED;
            if let Some(kind) = parts.headers.get(CONTENT_TYPE) {
                reply.headers_mut().insert(CONTENT_TYPE, kind.clone());
            }
            insert(&mut reply, LOCATION, &place);
        }
        Success::Redirect(url) => {
            *reply.status_mut() = StatusCode::SEE_OTHER;
            insert(&mut reply, LOCATION, &redirect(url, &target.bucket, &target.key, &etag));
        }
    }
    Ok(reply)
}

/// The address that the sender asked for, with what became of the upload.
fn redirect(url: &str, bucket: &str, key: &[u8], etag: &str) -> String {
    let mut out = format!("{url}{}bucket={bucket}&key=", if url.contains('?') { '&' } else { '?' });
    percent_encode_into(&mut out, key, false);
    out.push_str("&etag=");
    percent_encode_into(&mut out, quoted(etag.trim_matches('"')).as_bytes(), false);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_says_what_became_of_the_upload() {
        let plain = redirect("http://a/b", "bucket", b"k &", "\"x\"");
        assert_eq!(plain, "http://a/b?bucket=bucket&key=k%20%26&etag=%22x%22");
        assert!(redirect("http://a/b?c=d", "bucket", b"k", "x").starts_with("http://a/b?c=d&bucket=bucket&"));
    }
}
