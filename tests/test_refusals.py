"""Whom a refusal is about: what the mail servers of the world say, at the step where they do.

The replies are as they are known from the servers' sources, documents and public reports,
most of them from memory, with names and addresses changed. A line break is as it came.
"""

import pytest

from plumbing.refusal import Failure, Reply, whom

# (whose reply, the step, the reply, whom it is about)
REPLIES = [
    # ------------------------------------------------------------ Postfix
    ("Postfix", "RCPT", "504 5.5.2 <tracker@localhost>: Sender address rejected: need "
     "fully-qualified address", "us"),
    ("Postfix", "RCPT", "504 5.5.2 <tracker>: Helo command rejected: need fully-qualified "
     "hostname", "us"),
    ("Postfix", "RCPT", "553 5.7.1 <tracker@example.com>: Sender address rejected: not owned by "
     "user max", "us"),
    ("Postfix", "RCPT", "553 5.7.1 <tracker@example.com>: Sender address rejected: not logged in",
     "us"),
    ("Postfix", "RCPT", "550 5.1.8 <tracker@example.com>: Sender address rejected: Domain not "
     "found", "us"),
    ("Postfix", "RCPT", "550 5.1.0 <tracker@example.com>: Sender address rejected: User unknown "
     "in virtual mailbox table", "us"),
    ("Postfix", "RCPT", "554 5.7.1 <tracker@example.com>: Sender address rejected: Access denied",
     "us"),
    ("Postfix", "MAIL", "501 5.1.7 Bad sender address syntax", "us"),
    ("Postfix", "MAIL", "530 5.7.0 Must issue a STARTTLS command first", "us"),
    ("Postfix", "RCPT", "530 5.7.0 Must issue a STARTTLS command first", "us"),
    ("Postfix", "MAIL", "530 5.7.0 Authentication required", "us"),
    ("Postfix", "AUTH", "535 5.7.8 Error: authentication failed: UGFzc3dvcmQ6", "us"),
    ("Postfix", "AUTH", "538 5.7.11 Encryption required for requested authentication mechanism",
     "us"),
    ("Postfix", "AUTH", "503 5.5.1 Error: authentication not enabled", "us"),
    ("Postfix", "AUTH", "454 4.7.0 Temporary authentication failure: Connection lost to "
     "authentication server", "later"),
    ("Postfix", "RCPT", "550 5.1.1 <max@example.com>: Recipient address rejected: User unknown in "
     "local recipient table", "recipient"),
    ("Postfix", "RCPT", "550 5.1.1 <sender@login.example>: Recipient address rejected: User "
     "unknown in relay recipient table", "recipient"),
    ("Postfix", "RCPT", "550 5.1.2 <max@exmaple.com>: Recipient address rejected: Domain not "
     "found", "recipient"),
    ("Postfix", "RCPT", "556 5.1.10 <max@example.com>: Recipient address rejected: Domain "
     "example.com does not accept mail (nullMX)", "recipient"),
    ("Postfix", "RCPT", "554 5.7.1 <max@example.com>: Recipient address rejected: Access denied",
     "recipient"),
    ("Postfix", "RCPT", "552 5.2.2 <max@example.com>: Recipient address rejected: Mailbox is full",
     "recipient"),
    ("Postfix", "RCPT", "552 5.2.2 <max@example.com>: Recipient address rejected: Mailbox size "
     "limit exceeded", "recipient"),
    ("Postfix", "RCPT", "501 5.1.3 Bad recipient address syntax", "recipient"),
    ("Postfix", "RCPT", "454 4.7.1 <max@example.com>: Relay access denied", "later"),
    ("Postfix", "RCPT", "554 5.7.1 <max@example.com>: Relay access denied", "unclear"),
    ("Postfix", "RCPT", "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using "
     "zen.spamhaus.org; https://www.spamhaus.org/query/ip/192.0.2.1", "unclear"),
    ("Postfix", "RCPT", "550 5.7.25 Client host rejected: cannot find your hostname, [192.0.2.1]",
     "us"),
    ("Postfix", "RCPT", "554 5.7.1 <unknown[192.0.2.1]>: Client host rejected: Access denied",
     "unclear"),
    ("Postfix", "MAIL", "552 5.3.4 Message size exceeds fixed limit", "message"),
    ("Postfix", ".", "552 5.3.4 Error: message file too big", "message"),
    ("Postfix", ".", "550 5.7.1 message content rejected", "message"),
    ("Postfix", "RCPT", "450 4.1.1 <max@example.com>: Recipient address rejected: unverified "
     "address: Address lookup failed", "later"),
    ("Postfix", "MAIL", "452 4.3.1 Insufficient system storage", "later"),
    ("Postfix", "RCPT", "421 4.7.0 mail.example.com Error: too many errors", "connection"),
    ("Postfix", "MAIL", "502 5.5.2 Error: command not recognized", "us"),
    ("postgrey", "RCPT", "450 4.2.0 <max@example.com>: Recipient address rejected: Greylisted, "
     "see http://postgrey.schweikert.ch/help/example.com.html", "later"),
    ("policyd-spf", "RCPT", "550 5.7.23 <max@example.com>: Recipient address rejected: Message "
     "rejected due to: SPF fail - not authorized. Please see http://www.openspf.net/Why", "us"),
    ("policyd-spf", "RCPT", "550 5.7.1 <max@example.com>: Recipient address rejected: Message "
     "rejected due to: SPF fail - not authorized.", "us"),
    ("policyd", "RCPT", "554 5.7.1 <max@example.com>: Recipient address rejected: Policy rate "
     "limit exceeded", "unclear"),
    ("amavis", ".", "554 5.7.0 Reject, id=12345-01 - spam", "message"),
    ("amavis", ".", "554 5.7.0 Reject, id=12345-02 - INFECTED: Eicar-Test-Signature", "message"),
    ("rspamd", ".", "554 5.7.1 Spam message rejected", "message"),
    ("opendmarc", ".", "550 5.7.1 rejected by DMARC policy for example.com", "us"),
    ("Dovecot", ".", "552 5.2.2 <max@example.com> Quota exceeded (mailbox for user is full)",
     "recipient"),
    ("Dovecot", "RCPT", "550 5.1.1 <max@example.com> User doesn't exist: max@example.com",
     "recipient"),
    # ------------------------------------------------------------ Exim
    ("Exim", "RCPT", "550 Unrouteable address", "recipient"),
    ("Exim", "RCPT", "550-Verification failed for <tracker@example.com>\n"
     "Unrouteable address\nSender verify failed", "us"),
    ("Exim", "RCPT", "550 relay not permitted", "unclear"),
    ("Exim", "RCPT", "550 Administrative prohibition", "unclear"),
    ("Exim", "MAIL", "501 <tracker>: sender address must contain a domain", "us"),
    ("Exim", "MAIL", "550 authentication required", "us"),
    ("Exim", "AUTH", "535 Incorrect authentication data", "us"),
    ("Exim", "AUTH", "503 AUTH command used when not advertised", "us"),
    ("Exim", "RCPT", "550-JunkMail rejected - mail.example.com [192.0.2.1]:4242\n"
     "is in an RBL: https://www.spamhaus.org/query/ip/192.0.2.1", "unclear"),
    ("Exim", ".", "552 Message size exceeds maximum permitted", "message"),
    ("Exim", ".", "550 This message contains malware (Eicar-Test-Signature)", "message"),
    ("cPanel", "RCPT", "550 No Such User Here\"", "recipient"),
    ("cPanel", "RCPT", "550-Please turn on SMTP Authentication in your mail client.\n"
     "(mail.example.com) [192.0.2.1]:4242 is not permitted to relay through\n"
     "this server without authentication.", "us"),
    # ------------------------------------------------------------ Sendmail, OpenSMTPD, qmail ...
    ("Sendmail", "RCPT", "550 5.1.1 <max@example.com>... User unknown", "recipient"),
    ("Sendmail", "RCPT", "550 5.7.1 <max@example.com>... Relaying denied", "unclear"),
    ("Sendmail", "RCPT", "550 5.7.1 <max@example.com>... Relaying denied. IP name lookup failed "
     "[192.0.2.1]", "unclear"),
    ("Sendmail", "MAIL", "553 5.1.8 <tracker@localhost>... Domain of sender address "
     "tracker@localhost does not exist", "us"),
    ("Sendmail", "MAIL", "553 5.5.4 <tracker>... Domain name required for sender address tracker",
     "us"),
    ("Sendmail", "RCPT", "550 5.1.2 <max@example.com>... Host unknown (Name server: example.com: "
     "host not found)", "recipient"),
    ("Sendmail", "MAIL", "552 5.2.3 <tracker@example.com>... Message size exceeds fixed maximum "
     "message size (5000000)", "message"),
    ("OpenSMTPD", "RCPT", "550 Invalid recipient: <max@example.com>", "recipient"),
    ("OpenSMTPD", "MAIL", "530 5.5.1 Invalid command: Must issue an AUTH command first", "us"),
    ("OpenSMTPD", "MAIL", "530 5.5.1 Invalid command: Must issue a STARTTLS command first", "us"),
    ("OpenSMTPD", "MAIL", "553 5.1.7 Sender address syntax error", "us"),
    ("qmail", "RCPT", "553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)",
     "unclear"),
    ("qmail", "RCPT", "511 sorry, no mailbox here by that name (#5.1.1 - chkuser)", "recipient"),
    ("qmail", "MAIL", "553 sorry, your envelope sender is in my badmailfrom list (#5.7.1)", "us"),
    ("qmail", "RCPT", "553 sorry, your envelope sender is in my badmailfrom list (#5.7.1)", "us"),
    ("Courier", "RCPT", "550 User <max@example.com> unknown", "recipient"),
    ("Haraka", "RCPT", "550 I cannot deliver mail for <max@example.com>", "unclear"),
    ("Stalwart", "RCPT", "550 5.1.2 Mailbox does not exist.", "recipient"),
    ("Stalwart", "RCPT", "550 5.1.2 Relay not allowed.", "unclear"),
    ("Stalwart", "MAIL", "501 5.5.4 You are not allowed to send from this address.", "us"),
    ("Stalwart", "MAIL", "503 5.5.1 You must authenticate first.", "us"),
    ("hMailServer", "RCPT", "550 Unknown user", "recipient"),
    ("hMailServer", "RCPT", "530 SMTP authentication is required.", "us"),
    ("hMailServer", "RCPT", "550 Delivery is not allowed to this address.", "unclear"),
    ("MDaemon", "RCPT", "550 <max@example.com>, Recipient unknown", "recipient"),
    ("MailEnable", "RCPT", "503 This mail server requires authentication when attempting to send "
     "to a non-local e-mail address. Please check your mail client settings or contact your "
     "administrator to verify that the domain or address is defined for this server.", "us"),
    ("Kerio", "RCPT", "550 5.7.1 Relaying to <max@example.com> denied (authentication required)",
     "us"),
    ("Domino", "RCPT", "550 max@example.com... No such user", "recipient"),
    # ------------------------------------------------------------ Exchange, Office 365, Outlook
    ("Exchange", ".", "550 5.7.60 SMTP; Client does not have permissions to send as this sender",
     "us"),
    ("Office 365", ".", "554 5.2.252 SendAsDenied; max@example.com not allowed to send as "
     "tracker@example.com; STOREDRV.Submission.Exception:SendAsDeniedException.MapiException"
     "SendAsDenied; Failed to process message due to a permanent exception", "us"),
    ("Exchange", "MAIL", "530 5.7.57 SMTP; Client was not authenticated to send anonymous mail "
     "during MAIL FROM", "us"),
    ("Exchange", "RCPT", "530 5.7.1 Client was not authenticated", "us"),
    ("Exchange", "AUTH", "535 5.7.3 Authentication unsuccessful", "us"),
    ("Office 365", "AUTH", "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is "
     "disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled for more information.",
     "us"),
    ("Exchange", "AUTH", "504 5.7.4 Unrecognized authentication type", "us"),
    ("Exchange", "RCPT", "550 5.1.1 User unknown", "recipient"),
    ("Office 365", "RCPT", "550 5.4.1 Recipient address rejected: Access denied. "
     "AS(201806281) [DB5EUR01FT011.eop-EUR01.prod.protection.outlook.com]", "recipient"),
    ("Office 365", ".", "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient max@example.com not "
     "found by SMTP address lookup", "recipient"),
    ("Exchange", ".", "550 5.2.2 STOREDRV.Deliver; mailbox full", "recipient"),
    ("Office 365", ".", "550 5.7.133 RESOLVER.RST.SenderNotAuthenticatedForGroup; authentication "
     "required; Delivery restriction check failed because the sender was not authenticated when "
     "sending to this group", "recipient"),
    ("Office 365", ".", "550 5.7.124 RESOLVER.RST.SenderNotInAllowedSendersList; sender not in "
     "allowed-senders list", "recipient"),
    ("Exchange", ".", "550 5.7.1 RESOLVER.RST.NotAuthorized; not authorized", "recipient"),
    ("Exchange", ".", "550 5.7.1 RESOLVER.RST.AuthRequired; authentication required", "recipient"),
    ("Exchange", "RCPT", "550 5.7.1 Unable to relay", "unclear"),
    ("Exchange", "RCPT", "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain",
     "unclear"),
    ("Exchange", ".", "552 5.3.4 Message size exceeds fixed maximum message size", "message"),
    ("Office 365", ".", "550 5.1.8 Access denied, bad outbound sender", "us"),
    ("Office 365", ".", "550 5.7.708 Access denied, traffic not accepted from this IP. For more "
     "information please go to http://go.microsoft.com/fwlink/?LinkId=526653.", "unclear"),
    ("Office 365", ".", "550 5.7.705 Access denied, tenant has exceeded threshold.", "unclear"),
    ("Office 365", ".", "550 5.7.509 Access denied, sending domain example.com does not pass "
     "DMARC verification and has a DMARC policy of reject.", "us"),
    ("Outlook.com", ".", "550 5.7.515 Access denied, sending domain example.com doesn't meet the "
     "required authentication level.", "us"),
    ("Outlook.com", "RCPT", "550 5.5.0 Requested action not taken: mailbox unavailable",
     "recipient"),
    ("Outlook.com", "MAIL", "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. "
     "Please contact your Internet service provider since part of their network is on our block "
     "list (S3150).", "unclear"),
    # ------------------------------------------------------------ Gmail
    ("Gmail", "RCPT", "550-5.1.1 The email account that you tried to reach does not exist. Please "
     "try\n5.1.1 double-checking the recipient's email address for typos or\n5.1.1 unnecessary "
     "spaces. For more information, go to\n5.1.1  https://support.google.com/mail/?p=NoSuchUser",
     "recipient"),
    ("Gmail", "RCPT", "550 5.2.1 The email account that you tried to reach is disabled.",
     "recipient"),
    ("Gmail", "RCPT", "552-5.2.2 The recipient's inbox is out of storage space and inactive.\n"
     "5.2.2 Please direct the recipient to https://support.google.com/mail/?p=OverQuotaPerm",
     "recipient"),
    ("Gmail", "RCPT", "452-4.2.2 The recipient's inbox is out of storage space.", "later"),
    ("Gmail", "RCPT", "553-5.1.2 We weren't able to find the recipient domain. Please check for "
     "any\n5.1.2 spelling errors", "recipient"),
    ("Gmail", ".", "550-5.7.26 Your email has been blocked because the sender is unauthenticated.\n"
     "5.7.26 Gmail requires all senders to authenticate with either SPF or DKIM.", "us"),
    ("Gmail", ".", "550-5.7.25 [192.0.2.1] The IP address sending this message does not have a\n"
     "5.7.25 PTR record setup, or the corresponding forward DNS entry does not\n"
     "5.7.25 match the sending IP.", "us"),
    ("Gmail", ".", "550-5.7.1 [192.0.2.1] Our system has detected that this message is\n"
     "5.7.1 likely unsolicited mail. To reduce the amount of spam sent to Gmail,\n"
     "5.7.1 this message has been blocked.", "unclear"),
    ("Gmail", "MAIL", "530-5.7.0 Authentication Required. For more information, go to\n"
     "5.7.0  https://support.google.com/mail/?p=WantAuthError", "us"),
    ("Gmail", "MAIL", "530 5.7.0 Must issue a STARTTLS command first. a1sm - gsmtp", "us"),
    ("Gmail", "AUTH", "534-5.7.9 Application-specific password required.", "us"),
    ("Gmail", "AUTH", "535-5.7.8 Username and Password not accepted.", "us"),
    ("Gmail", ".", "550 5.4.5 Daily user sending limit exceeded. a1sm - gsmtp", "unclear"),
    ("Gmail", "RCPT", "550 5.4.5 Daily sending quota exceeded. a1sm - gsmtp", "unclear"),
    ("Gmail", "RCPT", "550-5.7.1 Invalid credentials for relay [192.0.2.1]. The IP address you've\n"
     "5.7.1 registered in your Workspace SMTP Relay service doesn't match the\n"
     "5.7.1 domain of the account this email is being sent from.", "us"),
    ("Gmail", ".", "552-5.7.0 This message was blocked because its content presents a potential\n"
     "5.7.0 security issue.", "message"),
    ("Gmail", "MAIL", "421-4.7.0 Try again later, closing connection. a1sm - gsmtp", "connection"),
    # ------------------------------------------------------------ Amazon SES
    ("Amazon SES", ".", "554 Message rejected: Email address is not verified. The following "
     "identities failed the check in region US-EAST-1: tracker@example.com", "us"),
    ("Amazon SES", "MAIL", "530 Authentication required", "us"),
    ("Amazon SES", "MAIL", "530 Must issue a STARTTLS command first", "us"),
    ("Amazon SES", "AUTH", "535 Authentication Credentials Invalid", "us"),
    ("Amazon SES", ".", "454 Throttling failure: Daily message quota exceeded.", "later"),
    ("Amazon SES", ".", "554 Sending paused for this account. For more information, please check "
     "the inbox of the email address associated with your AWS account.", "us"),
    ("Amazon SES", ".", "554 Message rejected: Sending suspended for this account. For more "
     "information, please check the inbox of the email address associated with your AWS account.",
     "us"),
    ("Amazon SES", ".", "554 Access denied: User `arn:aws:iam::123456789012:user/ses' is not "
     "authorized to perform `ses:SendRawEmail' on resource "
     "`arn:aws:ses:us-east-1:123456789012:identity/example.com'", "us"),
    ("Amazon SES", ".", "552 Message is too long.", "message"),
    # ------------------------------------------------------------ Proton, Yahoo, iCloud, GMX ...
    ("Proton", "RCPT", "553 5.7.1 <tracker@example.com>: Sender address rejected: not logged in",
     "us"),
    ("Proton", "AUTH", "535 5.7.8 Error: authentication failed: (reason unavailable)", "us"),
    ("Proton", "RCPT", "550 5.1.1 <max@proton.me>: Recipient address rejected: Address does not "
     "exist", "recipient"),
    ("Yahoo", ".", "554 delivery error: dd This user doesn't have a yahoo.com account "
     "(max@yahoo.com) [0] - mta4001.biz.mail.bf1.yahoo.com", "recipient"),
    ("Yahoo", ".", "553 From: address not verified; see http://help.yahoo.com/l/us/yahoo/mail",
     "us"),
    ("Yahoo", ".", "554 5.7.9 Message not accepted for policy reasons. See "
     "https://postmaster.yahooinc.com/error-codes", "unclear"),
    ("Yahoo", "AUTH", "535 5.7.0 (#AUTH005) Too many bad auth attempts.", "us"),
    ("Yahoo", "greeting", "553 5.7.1 [BL21] Connections will not be accepted from 192.0.2.1, "
     "because the ip is in Spamhaus's list", "unclear"),
    ("iCloud", ".", "550 5.7.0 From address is not one of your addresses", "us"),
    ("iCloud", "RCPT", "550 5.1.1 <max@icloud.com>: user does not exist", "recipient"),
    ("iCloud", "RCPT", "552 5.2.2 <max@icloud.com>: user is over quota", "recipient"),
    ("iCloud", ".", "554 5.7.1 [CS01] Message rejected due to local policy. Please visit "
     "https://support.apple.com/en-us/HT204137", "unclear"),
    ("GMX", "RCPT", "550 Requested action not taken: mailbox unavailable", "recipient"),
    ("GMX", "MAIL", "550-Requested action not taken: mailbox unavailable\n"
     "Sender address is not allowed.", "us"),
    ("GMX", ".", "550-Requested action not taken: mailbox unavailable\n"
     "Sender address is not allowed.", "us"),
    ("GMX", "MAIL", "550-Requested action not taken: mailbox unavailable\n"
     "Invalid DNS MX or A/AAAA resource record.", "us"),
    ("GMX", "AUTH", "535 Authentication credentials invalid", "us"),
    ("GMX", "RCPT", "552-Requested mail action aborted: exceeded storage allocation\n"
     "Quota exceeded.", "recipient"),
    ("GMX", ".", "554-Transaction failed\nReject due to policy restrictions.", "unclear"),
    ("GMX", "greeting", "554-gmx.net (mxgmx108) Nemesis ESMTP Service not available\n"
     "No SMTP service\nIP address is block listed.", "unclear"),
    ("T-Online", "greeting", "554 IP=192.0.2.1 - A problem occurred. Ask your postmaster for help "
     "or to contact tosa@rx.t-online.de to clarify. (BL)", "unclear"),
    ("Strato", ".", "550 5.7.1 Refused by local policy. No SPAM please!", "unclear"),
    ("Zoho", ".", "553 Relaying disallowed as tracker@example.com", "us"),
    ("Zoho", "AUTH", "535 Authentication Failed", "us"),
    ("Zoho", ".", "554 5.1.8 Email Outgoing Blocked", "us"),
    ("Zoho", ".", "550 5.4.6 Unusual sending activity detected. Please try after sometime.",
     "unclear"),
    ("Fastmail", ".", "551 5.7.1 Not authorised to send from this header address", "us"),
    ("Yandex", "MAIL", "553 5.7.1 Sender address rejected: not owned by auth user.", "us"),
    ("Yandex", ".", "554 5.7.1 Message rejected under suspicion of SPAM; "
     "https://ya.cc/1IrBc", "message"),
    ("mail.ru", "RCPT", "550 not local sender over smtp", "us"),
    ("mail.ru", ".", "550 Message was not accepted -- invalid mailbox. Local mailbox "
     "max@mail.ru is unavailable: user not found", "recipient"),
    ("QQ", "MAIL", "501 mail from address must be same as authorization user", "us"),
    ("163", "MAIL", "553 Mail from must equal authorized user", "us"),
    ("163", ".", "554 DT:SPM 163 smtp4,DtGowAD3,1 ,please see "
     "http://mail.163.com/help/help_spam_16.htm", "unclear"),
    ("Comcast", "RCPT", "550 5.1.1 Not our Customer", "recipient"),
    ("AT&T", "MAIL", "553 5.3.0 flpd575 DNSBL:RBL 521< 192.0.2.1 >_is_blocked. For assistance "
     "forward this error to abuse_rbl@abuse-att.net", "unclear"),
    # ------------------------------------------------------------ those who send for others
    ("SendGrid", ".", "550 The from address does not match a verified Sender Identity. Mail cannot "
     "be sent until this error is resolved. Visit "
     "https://sendgrid.com/docs/for-developers/sending-email/sender-identity/", "us"),
    ("SendGrid", "RCPT", "550 Cannot receive from specified address <tracker@example.com>: "
     "Unauthenticated senders not allowed", "us"),
    ("SendGrid", "AUTH", "535 Authentication failed: The provided authorization grant is invalid, "
     "expired, or revoked", "us"),
    ("SendGrid", "AUTH", "451 Authentication failed: Maximum credits exceeded", "later"),
    ("Mailgun", ".", "550 5.7.1 Domain mg.example.com is not allowed to send: The domain is "
     "unverified and requires DNS configuration.", "us"),
    ("Mailgun", "RCPT", "550 5.7.1 Relaying denied", "unclear"),
    ("SparkPost", ".", "550 5.7.1 Unconfigured Sending Domain <example.com>", "us"),
    ("Mimecast", "RCPT", "550 Invalid Recipient - "
     "https://community.mimecast.com/docs/DOC-1369#550", "recipient"),
    ("Proofpoint", "RCPT", "550 5.7.0 Local Policy Violation", "unclear"),
    ("Cisco", "RCPT", "550 #5.1.0 Address rejected.", "unclear"),
    # ------------------------------------------------------------ those that say next to nothing
    ("somebody", "RCPT", "550", "unclear"),
    ("somebody", "RCPT", "550 rejected", "unclear"),
    ("somebody", ".", "550 rejected", "unclear"),
    ("somebody", ".", "554 Transaction failed", "unclear"),
    ("somebody", "RCPT", "554 5.7.1 Command rejected", "unclear"),
    ("somebody", "DATA", "503 5.5.1 Bad sequence of commands", "unclear"),
    ("somebody", "RCPT", "550 Unknown error", "unclear"),
    ("somebody", "RCPT", "500 5.5.1 Command unknown", "unclear"),
    ("somebody", "RCPT", "500 unknown command", "unclear"),
    # Whom it is about does not depend on the step: the words of RFC 5321, and their like.
    ("somebody", "RCPT", "550 No such user here", "recipient"),
    ("somebody", ".", "550 No such user here", "recipient"),
    ("somebody", ".", "550 User unknown", "recipient"),
    ("somebody", ".", "550 Unknown user", "recipient"),
    ("somebody", ".", "551 User not local; please try max@example.org", "recipient"),
    ("somebody", ".", "550 Mailbox quota exceeded", "recipient"),
    ("somebody", ".", "554 The mailbox is full", "recipient"),
    ("somebody", "RCPT", "552 Insufficient system storage", "unclear"),
    ("somebody", "RCPT", "550 Outgoing mail quota exceeded", "unclear"),
    ("somebody", ".", "550 your mailbox has exceeded its daily sending quota", "unclear"),
    ("somebody", "RCPT", "552 Requested mail action aborted: exceeded storage allocation",
     "recipient"),
    ("somebody", "MAIL", "550 User unknown", "us"),
    ("somebody", "MAIL", "550 rejected", "us"),
    ("somebody", "RCPT", "550 5.1.1 ... unknown", "recipient"),
    ("somebody", "RCPT", "552 5.2.2 over", "recipient"),
    ("somebody", "AUTH", "535", "us"),
    ("somebody", "RCPT", "450", "later"),
    ("somebody", ".", "421", "connection"),
]  # fmt: skip


def read(reply):
    """The reply as the client has it: the code of its first line, and the text of all."""
    return Reply(int(reply[:3]), reply[4:])


@pytest.mark.parametrize(("server", "step", "reply", "about"), REPLIES)
def test_it_is_understood_whom_a_refusal_is_about(server, step, reply, about):
    assert whom(step, read(reply)) == about


def test_the_table_is_one_of_many_servers_and_steps():
    assert len({reply for _, _, reply, _ in REPLIES}) >= 60
    assert len({server for server, _, _, _ in REPLIES}) >= 20
    assert {about for _, _, _, about in REPLIES} == {
        "us",
        "recipient",
        "message",
        "unclear",
        "later",
        "connection",
    }


@pytest.mark.parametrize("address", ["sender@login.example", "relay@policy.example"])
@pytest.mark.parametrize(
    ("step", "reply", "about"),
    [
        ("RCPT", "550 <{}>: rejected", "unclear"),
        ("RCPT", "550 <{}>: no such user", "recipient"),
        ("RCPT", "550 {} unknown", "recipient"),
        (".", "554 spam for {}", "message"),
    ],
)
def test_what_an_address_is_called_means_nothing(address, step, reply, about):
    assert whom(step, read(reply.format(address))) == about


def test_a_reason_is_one_printable_line():
    failure = Failure("recipient", "550 5.1.1 no\r\nsuch\x00\x1b[31m user " + "x" * 1000)
    assert failure.about == "recipient"
    assert str(failure).startswith("550 5.1.1 no  such  [31m user xxx")
    assert str(failure).isprintable()
    assert len(str(failure)) == 300
