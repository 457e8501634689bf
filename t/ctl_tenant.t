#!/usr/bin/perl

# Copyright (C) The nginx referral module authors
#
# referralctl org, program, referrer and code, in Postgres.

use strict;
use warnings;
use utf8;

use Test::More;
use JSON::PP;
use Referral::Test;

my $t = Referral::Test->new();
my $pg = $t->postgres();
my $json = JSON::PP->new()->utf8();

delete @ENV{qw(REFERRAL_REDIS REFERRAL_DB REFERRAL_ORG REFERRAL_ACTOR PGHOST
               PGDATABASE PGSERVICE PGOPTIONS)};
$ENV{REFERRAL_DB} = $pg->conninfo();


sub ctl { return $t->referralctl(@_) }


# the document that the command prints, which must be done

sub doc {
    my (@args) = @_;

    my $r = ctl(@args, '--json');
    is($r->{status}, 0, "@args") or diag($r->{output});

    return eval { $json->decode($r->{output}) } // diag($r->{output});
}


# exit 1 and what is said: no SQL, no lines of the server

sub refused {
    my ($says, @args) = @_;

    my $r = ctl(@args);
    is($r->{status}, 1, "@args is refused");
    like($r->{output}, $says, 'with the reason') or diag($r->{output});
    unlike($r->{output}, qr/SQLSTATE|CONTEXT|PL\/pgSQL/, 'as one sentence');
}


sub usage {
    my ($says, @args) = @_;

    my $r = ctl(@args);
    is($r->{status}, 2, "@args is wrong");
    like($r->{output}, $says, 'says why') or diag($r->{output});
    like($r->{output}, qr/^See: referralctl \w+ \w+ --help$/m, 'and where');
}


#
# organisations
#

is_deeply(doc('org', 'list'), [], 'no organisations');
like(ctl('org', 'list')->{output}, qr/^no organisations$/, 'in words');

my $org = doc('org', 'create', 'acme', 'name=Acme Ältd', 'currency=EUR',
              'time_zone=Europe/Berlin', 'settings={"a": [1]}');

is_deeply([ sort keys %$org ],
          [ qw(active_programs created_at currency id max_active_programs name
               settings slug status time_zone updated_at) ], 'its keys');
is($org->{name}, 'Acme Ältd', 'a name');
is($org->{max_active_programs}, 5, 'a number');
is_deeply($org->{settings}, { a => [ 1 ] }, 'JSON is JSON');
like($org->{created_at}, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/,
     'a time');

my $r = ctl('org', 'create', 'beta', '--actor', 'mary');
like($r->{output}, qr/^organisation beta is made:\n  id  +2\n  name  +beta\n/,
     'in words');
is($pg->value("SELECT actor FROM referral.audit WHERE object = 'organisation'"
              . ' AND object_id = 2'), 'mary', '--actor');

is_deeply([ map { $_->{slug} } @{ doc('org', 'list') } ], [ 'acme', 'beta' ],
          'list');
like(ctl('org', 'list')->{output},
     qr/^ORG +NAME +STATUS +ACTIVE PROGRAMS +CURRENCY +TIME ZONE\nacme /,
     'a table');

is(doc('org', 'show', 'acme')->{id}, $org->{id}, 'show');
is(doc('org', 'show', "id:$org->{id}")->{slug}, 'acme', 'by id');
is(doc('org', 'show', $org->{id})->{slug}, 'acme', 'by a plain id');

is(doc('org', 'update', 'acme', 'max_active_programs=3')
   ->{max_active_programs}, 3, 'update');
is_deeply(doc('org', 'update', 'acme', 'settings={}')->{settings}, {},
          'one key, the others stay');
is(doc('org', 'disable', 'beta')->{status}, 'disabled', 'disable');
is_deeply([ map { $_->{slug} } @{ doc('org', 'list', 'status=disabled') } ],
          [ 'beta' ], 'list by status');
is(doc('org', 'enable', 'beta')->{status}, 'active', 'enable');

refused(qr/the slug "acme" is taken \(RF017\)/, qw(org create acme));
refused(qr/"currency" is not acceptable \(RF010\).*as USD/,
        qw(org update acme currency=euro));
refused(qr/there is no organisation "nosuch"/, qw(org show nosuch));
refused(qr/there is no organisation "id:99"/, qw(org show id:99));
refused(qr/\(RF015\)/, qw(org create gamma time_zone=Mars));
usage(qr/org show needs: ORG/, qw(org show));
usage(qr/org enable: "x" is too much/, qw(org enable acme x));
usage(qr/there is no key "colour"; keys are slug, name,/,
      qw(org update acme colour=red));
usage(qr/name is given twice/, qw(org update acme name=a name=b));
usage(qr/"x": KEY=VALUE is expected/, qw(org update acme x));
usage(qr/max_active_programs: "x" is not a number/,
      qw(org update acme max_active_programs=x));
usage(qr/settings: this is no JSON: .* at byte/,
      qw(org update acme settings={));
usage(qr/name: "a\\ufffd"|name: ".*" is not valid UTF-8/,
      qw(org update acme), "name=a\xff");

# an organisation whose name is another one's id

$pg->value("SELECT referral.organisation_create('$org->{id}', 'one')");
refused(qr/"1" can be 1 \(id \d+\), acme \(id 1\); id:17 is/, qw(org show 1));
is(doc('org', 'show', 'id:1')->{slug}, 'acme', 'said exactly');

#
# programs
#

my $p = doc('program', 'create', 'acme', 'summer', 'name=Summer',
            'landing_url=https://example.com/s', 'ends_at=2099-07-01',
            'eligibility={"types": ["customer"]}', 'campaign=tv');

is_deeply([ sort keys %$p ],
          [ qw(attribution attribution_window campaign cloned_from code_prefix
               created_at created_by currency description eligibility ends_at
               id landing_url max_referrals_per_referrer name organisation
               organisation_id referral_validity reward_threshold settings slug
               starts_at status targeting template terms terms_required
               terms_version time_zone type updated_at) ], 'its keys');
is($p->{ends_at}, '2099-06-30T22:00:00Z', 'a time without zone is its own');
is($p->{status}, 'draft', 'a draft');
is($p->{starts_at}, undef, 'null');
is($p->{template}, JSON::PP::false, 'false');

is(doc('program', 'enable', 'summer')->{status}, 'active', 'enable');
is(doc('program', 'disable', 'acme/summer')->{status}, 'paused', 'disable');
is(doc('program', 'end', $p->{id})->{status}, 'ended', 'end');
is(doc('program', 'enable', "id:$p->{id}")->{status}, 'active', 'again');
is(doc('program', 'update', 'summer', 'ends_at=')->{ends_at}, undef,
   'a key without a value is null');

my $copy = doc('program', 'clone', 'summer', 'autumn', 'name=Autumn');
is($copy->{cloned_from}, $p->{id}, 'clone');
is($copy->{landing_url}, 'https://example.com/s', 'copies');
is($copy->{name}, 'Autumn', 'and changes');
is(doc('program', 'archive', 'autumn')->{status}, 'archived', 'archive');
is(doc('program', 'clone', 'summer', 'tpl', 'template=yes')->{template},
   JSON::PP::true, 'a template');
is(doc('program', 'create', 'acme', 'winter', 'template=tpl')->{campaign},
   'tv', 'a program made of it');

cmp_ok(scalar(@{ doc('program', 'templates') }), '>', 0, 'templates');
is(doc('program', 'variant', 'summer', 'double', 'weight=2',
       'settings={"x":1}')->{weight}, 2, 'variant');
is(doc('program', 'variant', 'summer', 'double', 'status=disabled')->{weight},
   2, 'what is not given stays');
is(scalar(@{ doc('program', 'variants', 'summer') }), 1, 'variants');

is_deeply([ map { "$_->{organisation}/$_->{slug}" }
            @{ doc('program', 'list', 'acme', 'status=active') } ],
          [ 'acme/summer' ], 'list');
like(ctl('program', 'list')->{output}, qr/^acme\/summer +Summer +standard/m,
     'a table');

$pg->value("SELECT referral.program_create(2, 'summer', 'other')");
refused(qr{"summer" can be acme/summer \(id \d+\), beta/summer \(id},
        qw(program show summer));
is(doc('program', 'show', 'summer', '--org', 'beta')->{name}, 'other',
   '--org');
refused(qr/there is no program "acme\/summer"/,
        qw(program show acme/summer --org beta));
refused(qr/there is no organisation "nope"/,
        qw(program show summer --org nope));
refused(qr/"type" is not acceptable.*seasonal/,
        qw(program update acme/summer type=x));
refused(qr/\(RF032\)/, qw(program update acme/summer landing_url=ftp://x));
refused(qr/as many as it may have \(RF019\)/, @$_)
    for [ qw(program enable acme/winter --org acme) ]
        x !!(doc('org', 'update', 'acme', 'max_active_programs=1'));
usage(qr/ends_at: "tomorrow" is no time/,
      qw(program update acme/summer ends_at=tomorrow));
usage(qr/terms_required: "maybe" is neither yes nor no/,
      qw(program update acme/summer terms_required=maybe));
doc('org', 'update', 'acme', 'max_active_programs=5');

#
# referrers
#

my $who = doc('referrer', 'create', 'acme', 'customer', 'external_id=4711',
              'name=Juan Pérez', 'email=juan@example.com',
              'address={"city": "Montevideo"}', 'attributes={"vip": true}');

ok(!exists $who->{email}, 'nothing personal is shown');
unlike($json->encode($who), qr/Juan/, 'nowhere');
is($who->{has_contact}, JSON::PP::true, 'there is a contact');

my $contact = doc('referrer', 'contact', '4711', 'reason=ticket 88');
is($contact->{name}, 'Juan Pérez', 'which is another command');
is_deeply($contact->{address}, { city => 'Montevideo' }, 'all of it');
is($pg->value("SELECT reason FROM referral.audit WHERE action = 'read'"),
   'ticket 88', 'that stands in the audit');

is(doc('referrer', 'update', 'acme/4711', 'phone=+598 1 22', 'notes=n')
   ->{notes}, 'n', 'update');
is(doc('referrer', 'contact', '4711')->{phone}, '+598 1 22', 'contact, too');
is(doc('referrer', 'disable', '4711')->{status}, 'suspended', 'disable');
is(doc('referrer', 'enable', '4711')->{status}, 'active', 'enable');

my $new = doc('referrer', 'apply', 'acme', 'affiliate', 'external_id=blog-7');
is($new->{status}, 'applied', 'apply');
refused(qr/referrer \d+ can have no code .* for customer \(RF027\)/,
        qw(referrer approve blog-7 program=acme/summer));
is(doc('referrer', 'show', 'blog-7')->{status}, 'applied',
   'nothing is half done');
is(doc('referrer', 'approve', 'blog-7')->{status}, 'active', 'approve');
doc('referrer', 'apply', 'acme', 'customer', 'external_id=c2');
is(doc('referrer', 'approve', 'c2', 'program=acme/summer', 'code=c2code')
   ->{status}, 'active', 'approve with a code');
is(doc('code', 'show', 'C2CODE')->{external_id}, 'c2', 'which is there');
doc('referrer', 'apply', 'acme', 'customer', 'external_id=c3');
is(doc('referrer', 'reject', 'c3', 'no imprint = no')->{reject_reason},
   'no imprint = no', 'reject');
is(doc('referrer', 'terminate', 'blog-7')->{status}, 'terminated',
   'terminate');
is(scalar(@{ doc('referrer', 'list', 'acme') }), 4, 'list');
is(scalar(@{ doc('referrer', 'list', 'status=rejected') }), 1, 'by status');
is(scalar(@{ doc('referrer', 'list', 'beta') }), 0, 'by organisation');

doc('program', 'update', 'acme/summer', 'terms=be nice',
    'terms_required=yes');
refused(qr/has not accepted the terms .* \(RF024\)/,
        qw(code create acme/summer referrer=4711));
is(doc('referrer', 'accept', 'acme/summer', '4711')->{version}, 1,
   'accept the terms');

refused(qr/external id "4711" is there already \(RF026\)/,
        qw(referrer create acme customer external_id=4711));
refused(qr/there is no referrer "id:1"/, qw(referrer show id:1 --org beta));
refused(qr/there is no referrer "nobody"/, qw(referrer show nobody));
refused(qr/"email" is not acceptable.*one @/,
        qw(referrer update 4711 email=x));
refused(qr/\(RF021\)/, qw(referrer enable blog-7));
usage(qr/referrer reject needs: REASON/, qw(referrer reject c3));

#
# codes
#

my $code = doc('code', 'create', 'acme/summer', 'summer25', 'referrer=4711',
               'expires_at=2098-01-01', 'max_uses=3', 'rules={"a":1}');

is_deeply([ sort keys %$code ],
          [ qw(campaign channel code created_at destination expires_at
               external_id id kind max_uses organisation organisation_id own
               program program_id referrer_id rules settings starts_at status
               updated_at url uses variant_id verdict) ], 'its keys');
is($code->{code}, 'SUMMER25', 'in capitals');
is($code->{verdict}, 'valid', 'judged');
is($code->{url}, 'https://example.com/s', 'leads to the program');
is($code->{expires_at}, '2097-12-31T23:00:00Z', 'in its zone');

like(doc('code', 'create', 'acme/summer')->{code}, qr/^[2-9A-HJKMNP-TV-Z]{8}$/,
     'an automatic one');
my $own = doc('code', 'ensure', 'acme/summer', '4712', 'type=customer',
              'terms_accepted=yes', 'name=Ana');
like($own->{code}, qr/^ANA/, 'ensure');
is(doc('code', 'ensure', 'acme/summer', '4712')->{code}, $own->{code},
   'the same again');

is(doc('code', 'disable', 'summer25')->{verdict}, 'inactive', 'disable');
is(doc('code', 'enable', 'summer25')->{verdict}, 'valid', 'enable');
is(doc('code', 'update', 'summer25', 'expires_at=2001-01-01', 'campaign=x')
   ->{verdict}, 'expired', 'update');
is(doc('code', 'update', 'summer25', 'expires_at=', 'max_uses=')
   ->{expires_at}, undef, 'and back');
is(doc('code', 'show', 'Summer25')->{campaign}, 'x', 'show');

is_deeply([ map { $_->{code} } @{ doc('code', 'list', 'sum*') } ],
          [ 'SUMMER25' ], 'list by pattern');
is(scalar(@{ doc('code', 'list', '_*') }), 0, '_ is itself');
is_deeply([ map { $_->{code} } @{ doc('code', 'list', 'referrer=4712') } ],
          [ $own->{code} ], 'by referrer');
is(scalar(@{ doc('code', 'list', 'program=acme/winter') }), 0, 'by program');
is(scalar(@{ doc('code', 'list', 'campaign=x') }), 1, 'by campaign');
like(ctl('code', 'list')->{output}, qr/^CODE +NOW +PROGRAM +REFERRER +USES/,
     'a table');

# a code that looks like an id, and one that is a word of SQL

doc('code', 'create', 'acme/summer', '1');
is(doc('code', 'show', '1')->{code}, '1', 'a number is a code');
is(doc('code', 'show', "id:$code->{id}")->{code}, 'SUMMER25', 'id: is an id');
is(doc('code', 'create', 'acme/summer', 'null')->{code}, 'NULL', 'NULL');

refused(qr/the code SUMMER25 is taken \(RF029\).*Free: SUMMER25-2/,
        qw(code create acme/summer SUMMER25));
refused(qr/there is no code "NOPE"/, qw(code show NOPE));
refused(qr/there is no referrer "x"/, qw(code create acme/summer referrer=x));
refused(qr/code SUMMER25 belongs to referrer/,
        qw(code update summer25 referrer=4712));
usage(qr/code create needs: PROGRAM/, qw(code create));

is(ctl('code', 'create', 'acme/summer', 'b d')->{status}, 2, 'no code at all');

#
# rights, scopes, servers
#

$pg->value('CREATE ROLE app LOGIN IN ROLE referral_app; '
           . 'CREATE ROLE nobody LOGIN; SELECT 1');

is(ctl('org', 'list', '--db', $pg->conninfo(user => 'app'))->{status}, 0,
   'as referral_app');
is(ctl('code', 'create', 'acme/summer', '--db', $pg->conninfo(user => 'app'))
   ->{status}, 0, 'which may write');

$r = ctl('org', 'list', '--db', $pg->conninfo(user => 'nobody'));
is($r->{status}, 1, 'as nobody');
like($r->{output}, qr/permission denied.*granted referral_app/, 'says who may');

$r = ctl('org', 'list', '--db', $pg->conninfo(db => 'postgres'));
is($r->{status}, 1, 'another database');
like($r->{output}, qr/db upgrade/, 'says what is missing');

is(ctl('org', 'list', '--db', 'host=/nonexistent')->{status}, 3,
   'no server');

# a long list comes in blocks: the columns do not move back

$pg->value('SELECT count(*) FROM (SELECT referral.code_create(1, NULL,'
           . " 'LONG' || n) FROM generate_series(1, 2500) n) x");
$r = ctl('code', 'list', 'LONG*');
is(() = $r->{output} =~ /^LONG\d+ /mg, 2500, 'long lists are whole');
is(() = $r->{output} =~ /^CODE /mg, 1, 'with one heading');
is(scalar(@{ doc('code', 'list', 'LONG*') }), 2500, 'as JSON, too');

$t->done();
