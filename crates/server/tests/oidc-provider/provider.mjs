// An OpenID provider on a port of this computer: prints its URL as its first line, and ends with its standard input.
//
// It issues JWT access tokens for one resource server, to one application and to one public client on behalf of people.
// Whoever comes to sign in is signed in as the `login_hint` says: what is tested are tokens, not pages.

import { createServer } from 'node:http';
import { generateKeyPairSync, randomBytes } from 'node:crypto';

import Provider from 'oidc-provider';

const RESOURCE = 'api://cordon';
const SCOPES = 'Machine.Read Machine.RestrictExecution';
const GROUPS = { ann: ['responders', 'tier 2'], bob: [] };

const key = (id, type, options, algorithm) => ({
  ...generateKeyPairSync(type, options).privateKey.export({ format: 'jwk' }),
  kid: id,
  use: 'sig',
  alg: algorithm,
});

const configuration = (algorithm) => ({
  jwks: {
    keys: [
      key('rsa', 'rsa', { modulusLength: 2048 }, 'RS256'),
      key('ec', 'ec', { namedCurve: 'P-256' }, 'ES256'),
    ],
  },
  cookies: { keys: [randomBytes(32).toString('hex')] },
  scopes: ['openid'],
  clients: [
    {
      client_id: '6f9d3c1e-0f3b-4c55-9a0b-2d1c8a6f4e77',
      client_secret: 'not-a-secret',
      grant_types: ['client_credentials'],
      response_types: [],
      redirect_uris: [],
    },
    {
      client_id: 'console',
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      grant_types: ['authorization_code'],
      redirect_uris: ['http://127.0.0.1/callback'],
    },
  ],
  findAccount: (_context, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  extraTokenClaims: (_context, token) =>
    token.kind === 'ClientCredentials'
      ? { roles: ['Machine.Read.All'] }
      : { preferred_username: `${token.accountId}@example.com`, groups: GROUPS[token.accountId] },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: SCOPES,
        audience: RESOURCE,
        accessTokenFormat: 'jwt',
        accessTokenTTL: 600,
        jwt: { sign: { alg: algorithm } },
      }),
    },
  },
  interactions: { url: (_context, interaction) => `/interaction/${interaction.uid}` },
});

const interact = async (provider, request, response) => {
  const { params, prompt, session } = await provider.interactionDetails(request, response);
  if (prompt.name === 'login') {
    const login = { accountId: params.login_hint };
    return provider.interactionFinished(request, response, { login });
  }
  const grant = new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope('openid');
  grant.addResourceScope(RESOURCE, SCOPES);
  const consent = { grantId: await grant.save() };
  return provider.interactionFinished(request, response, { consent });
};

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const url = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(url, configuration(process.argv[2]));
  const callback = provider.callback();
  server.on('request', (request, response) => {
    if (request.url.startsWith('/interaction/')) {
      interact(provider, request, response).catch((error) => response.writeHead(500).end(`${error.stack}`));
    } else {
      callback(request, response);
    }
  });
  console.log(url);
});
process.stdin.on('end', () => process.exit()).resume();
